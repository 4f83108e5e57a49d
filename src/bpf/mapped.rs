//! Array maps that are in our memory too (BPF_F_MMAPABLE): no system call to read or write them.

use libbpf_rs::MapCore;
use plain::Plain;
use std::io;
use std::os::fd::AsRawFd;

/// All entries of one array map.
pub struct Mapped {
    address: *mut u8,
    entries: usize,
    /// From one entry to the next: the kernel rounds values up to 8 bytes.
    stride: usize,
}

impl Mapped {
    pub fn new(map: &impl MapCore) -> io::Result<Mapped> {
        let (entries, stride) = (map.max_entries() as usize, (map.value_size() as usize).next_multiple_of(8));
        // SAFETY: a fresh mapping, as long as the map's memory (which is whole pages).
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                entries * stride,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_fd().as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Mapped { address: address.cast(), entries, stride })
    }

    pub fn len(&self) -> usize {
        self.entries
    }

    /// Copies of all entries. BPF may write meanwhile: call it when nothing is counted any more.
    pub fn entries<T: Plain + Copy>(&self) -> impl Iterator<Item = T> {
        assert!(size_of::<T>() <= self.stride, "an entry is no larger than the map's values");
        (0..self.entries).map(|index| {
            // SAFETY: inside the mapping, aligned to 8 bytes, and any bytes are a valid T.
            unsafe { std::ptr::read_volatile(self.address.add(index * self.stride).cast::<T>()) }
        })
    }

    /// Overwrites entries from `first` on; as many as there is room for.
    pub fn write<T: Copy>(&mut self, first: usize, values: &[T]) {
        assert!(size_of::<T>() == self.stride, "entries are written whole");
        let count = values.len().min(self.entries.saturating_sub(first));
        // SAFETY: `count` entries from `first` on are inside the mapping.
        unsafe {
            let to = self.address.add(first * self.stride).cast::<T>();
            std::ptr::copy_nonoverlapping(values.as_ptr(), to, count);
        }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping made in new(), of which no reference is left.
        unsafe { libc::munmap(self.address.cast(), self.entries * self.stride) };
    }
}
