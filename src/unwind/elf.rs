//! The three things unwinding needs from an ELF file: its segments, `.eh_frame`, and where that is.

/// Reads `length` bytes at an offset of the file; `None` when it has not that many.
pub type Read<'a> = &'a dyn Fn(u64, usize) -> Option<Vec<u8>>;

/// A loaded part of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub offset: u64,
    pub vaddr: u64,
    pub file_size: u64,
    pub executable: bool,
}

#[derive(Debug)]
pub struct Section {
    pub vaddr: u64,
    pub bytes: Vec<u8>,
}

#[derive(Debug)]
pub struct Image {
    pub segments: Vec<Segment>,
    pub eh_frame: Option<Section>,
}

const PT_LOAD: u32 = 1;
const PF_X: u32 = 1;
const PT_GNU_EH_FRAME: u32 = 0x6474_e550;
const SHT_NOBITS: u32 = 8;
const EM_X86_64: u16 = 62;
/// A section larger than this is no unwind table (Chromium's has 15 MB).
const MAX_SECTION: u64 = 256 << 20;

impl Image {
    /// `None`: no 64-bit little-endian ELF file of this machine, or damaged.
    pub fn parse(read: Read<'_>) -> Option<Image> {
        let header = read(0, 64)?;
        if header[..6] != *b"\x7fELF\x02\x01" || u16_at(&header, 18)? != EM_X86_64 {
            return None;
        }
        let mut segments = Vec::new();
        let mut eh_frame_hdr = None;
        let (at, size, count) = (u64_at(&header, 32)?, u16_at(&header, 54)?, u16_at(&header, 56)?);
        let table = read(at, usize::from(size) * usize::from(count))?;
        for entry in table.chunks_exact(usize::from(size).max(56)) {
            let segment = Segment {
                offset: u64_at(entry, 8)?,
                vaddr: u64_at(entry, 16)?,
                file_size: u64_at(entry, 32)?,
                executable: u32_at(entry, 4)? & PF_X != 0,
            };
            match u32_at(entry, 0)? {
                PT_LOAD => segments.push(segment),
                PT_GNU_EH_FRAME => eh_frame_hdr = Some(segment),
                _ => {}
            }
        }
        let eh_frame =
            by_section(read, &header).or_else(|| by_segment(read, &segments, eh_frame_hdr.as_ref()?));
        Some(Image { segments, eh_frame })
    }
}

fn by_section(read: Read<'_>, header: &[u8]) -> Option<Section> {
    let (at, size) = (u64_at(header, 40)?, usize::from(u16_at(header, 58)?));
    let (count, names) = (usize::from(u16_at(header, 60)?), usize::from(u16_at(header, 62)?));
    if at == 0 || size < 64 {
        return None;
    }
    let table = read(at, size * count)?;
    let names = table.chunks_exact(size).nth(names)?;
    let names = read(u64_at(names, 24)?, usize::try_from(u64_at(names, 32)?.min(MAX_SECTION)).ok()?)?;
    for entry in table.chunks_exact(size) {
        let name = names.get(u32_at(entry, 0)? as usize..)?;
        if !name.starts_with(b".eh_frame\0") || u32_at(entry, 4)? == SHT_NOBITS {
            continue;
        }
        let length = u64_at(entry, 32)?;
        if length > MAX_SECTION {
            return None;
        }
        let bytes = read(u64_at(entry, 24)?, length as usize)?;
        return Some(Section { vaddr: u64_at(entry, 16)?, bytes });
    }
    None
}

/// Files without section headers: through `.eh_frame_hdr`, up to the end of the segment; a terminator
/// ends the table before that.
fn by_segment(read: Read<'_>, segments: &[Segment], hdr: &Segment) -> Option<Section> {
    let bytes = read(hdr.offset, 8)?;
    // Version 1; DW_EH_PE_pcrel | DW_EH_PE_sdata4, as every linker writes it.
    if bytes[..2] != [1, 0x1b] {
        return None;
    }
    let vaddr = hdr.vaddr.wrapping_add(4).wrapping_add_signed(i64::from(u32_at(&bytes, 4)? as i32));
    let segment = segments.iter().find(|segment| {
        vaddr.checked_sub(segment.vaddr).is_some_and(|distance| distance < segment.file_size)
    })?;
    let into = vaddr - segment.vaddr;
    let length = (segment.file_size - into).min(MAX_SECTION);
    Some(Section { vaddr, bytes: read(segment.offset + into, length as usize)? })
}

/// The address that the code at a file offset is linked at.
///
/// Mappings start at page boundaries and segments need not: the page may begin with the end of another
/// segment, which is linked elsewhere.
pub fn vaddr_at(segments: &[Segment], offset: u64) -> Option<u64> {
    const PAGE: u64 = 4096;
    let segment = segments.iter().find(|segment| {
        let first_page = segment.offset & !(PAGE - 1);
        segment.executable && first_page <= offset && offset < segment.offset + segment.file_size
    })?;
    Some(segment.vaddr.wrapping_add(offset).wrapping_sub(segment.offset))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}
