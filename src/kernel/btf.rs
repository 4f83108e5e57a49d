//! The kernel's types, from its BTF and its modules': what lies at an offset of a structure.
//!
//! A reader of our own, for libbpf's shows one file at a time and no lookup by offset. The format is in
//! Documentation/bpf/btf.rst.

use std::collections::HashMap;
use std::path::Path;
use std::{fs, io};

const DIR: &str = "/sys/kernel/btf";
/// How deep structures lie in each other; the kernel's deepest is about half of this.
const MAX_DEPTH: usize = 16;

pub type TypeId = u32;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    name: u32,
    kind: TypeId,
    bit_offset: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Shape {
    Struct {
        size: u32,
        members: Vec<Member>,
    },
    Array {
        of: TypeId,
        count: u32,
    },
    Pointer(TypeId),
    /// typedef, const, volatile, restrict, type_tag.
    Alias(TypeId),
    Function(TypeId),
    Prototype(Vec<TypeId>),
    Variable(TypeId),
    /// Of so many bytes; 0: none (void, a forward declaration, a section).
    Other(u32),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Type {
    name: u32,
    shape: Shape,
}

/// The types of a kernel; those of its modules follow its own.
#[derive(Debug, Default)]
pub struct Types {
    strings: Vec<u8>,
    types: Vec<Type>,
    structs: HashMap<String, TypeId>,
    functions: HashMap<String, TypeId>,
    variables: HashMap<String, TypeId>,
    /// Types and strings of the kernel itself, which modules count on from.
    own: (u32, u32),
}

/// A step from a structure to what lies in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step<'t> {
    /// The structure, empty where it has no name.
    pub within: &'t str,
    /// `wq[2]`; empty for a member without a name.
    pub member: String,
}

impl Types {
    /// The running kernel's.
    pub fn load() -> io::Result<Types> {
        let mut types = Types::parse(&fs::read(Path::new(DIR).join("vmlinux"))?)?;
        let mut modules: Vec<_> = fs::read_dir(DIR)?.flatten().map(|entry| entry.path()).collect();
        modules.sort();
        for module in modules.iter().filter(|path| !path.ends_with("vmlinux")) {
            // One that goes away meanwhile, or is of another time, costs its own types only.
            if let Ok(bytes) = fs::read(module) {
                let _ = types.add_module(&bytes);
            }
        }
        Ok(types)
    }

    pub fn parse(bytes: &[u8]) -> io::Result<Types> {
        // Type 0 is void.
        let void = Type { name: 0, shape: Shape::Other(0) };
        let mut types = Types { types: vec![void], ..Types::default() };
        types.own = (1, 0);
        types.add(bytes)?;
        types.own = (types.types.len() as u32, types.strings.len() as u32);
        Ok(types)
    }

    /// Adds those of a module, which refers to the kernel's.
    pub fn add_module(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.add(bytes)
    }

    fn add(&mut self, bytes: &[u8]) -> io::Result<()> {
        let header = Header::parse(bytes)?;
        let (own_types, own_strings) = self.own;
        let (first_type, first_string) = (self.types.len() as u32, self.strings.len() as u32);
        let type_id = |id: u32| if id < own_types { id } else { id - own_types + first_type };
        let string = |at: u32| if at < own_strings { at } else { at - own_strings + first_string };
        let mut added = Vec::new();
        let mut reader = Reader { bytes: header.types, at: 0 };
        while reader.at < reader.bytes.len() {
            added.push(read_type(&mut reader, &type_id, &string)?);
        }
        self.strings.extend_from_slice(header.strings);
        for (index, new) in added.iter().enumerate() {
            let id = first_type + index as u32;
            let name = text(&self.strings, new.name);
            if name.is_empty() {
                continue;
            }
            let index = match &new.shape {
                Shape::Struct { .. } => &mut self.structs,
                Shape::Function(_) => &mut self.functions,
                Shape::Variable(_) => &mut self.variables,
                _ => continue,
            };
            // Modules repeat what the kernel has.
            index.entry(name.to_string()).or_insert(id);
        }
        self.types.append(&mut added);
        Ok(())
    }

    fn get(&self, id: TypeId) -> Option<&Type> {
        self.types.get(id as usize)
    }

    fn name(&self, id: TypeId) -> &str {
        self.get(id).map_or("", |found| text(&self.strings, found.name))
    }

    pub fn structure(&self, name: &str) -> Option<TypeId> {
        self.structs.get(name).copied()
    }

    /// All that have names, with their sizes.
    pub fn structures(&self) -> impl Iterator<Item = (&str, TypeId, u32)> {
        self.structs.iter().map(|(name, id)| (name.as_str(), *id, self.size(*id)))
    }

    /// The type of a variable; BTF has the per-CPU ones.
    pub fn variable(&self, name: &str) -> Option<TypeId> {
        match self.get(*self.variables.get(name)?)?.shape {
            Shape::Variable(of) => Some(of),
            _ => None,
        }
    }

    /// The structures that the arguments of a function point to.
    pub fn argument_structures(&self, function: &str) -> Vec<TypeId> {
        let arguments = || -> Option<&[TypeId]> {
            let Shape::Function(prototype) = self.get(*self.functions.get(function)?)?.shape else {
                return None;
            };
            match &self.get(prototype)?.shape {
                Shape::Prototype(arguments) => Some(arguments),
                _ => None,
            }
        };
        arguments()
            .unwrap_or_default()
            .iter()
            .filter_map(|argument| self.pointed_structure(*argument))
            .collect()
    }

    /// Structures that a structure points to, one step away.
    pub fn pointed_structures(&self, id: TypeId) -> Vec<TypeId> {
        let Some(Type { shape: Shape::Struct { members, .. }, .. }) = self.get(id) else { return vec![] };
        members.iter().filter_map(|member| self.pointed_structure(member.kind)).collect()
    }

    fn pointed_structure(&self, id: TypeId) -> Option<TypeId> {
        let Shape::Pointer(to) = self.get(self.unaliased(id).0)?.shape else { return None };
        let (to, _) = self.unaliased(to);
        // A module's copy of a structure, or a declaration, is the one of that name.
        self.structure(self.name(to))
    }

    /// What an alias stands for, and the name of the last typedef on the way.
    fn unaliased(&self, mut id: TypeId) -> (TypeId, &str) {
        let mut name = "";
        for _ in 0..MAX_DEPTH {
            let Some(found) = self.get(id) else { break };
            let Shape::Alias(to) = found.shape else { break };
            if found.name != 0 {
                name = text(&self.strings, found.name);
            }
            id = to;
        }
        (id, name)
    }

    pub fn size(&self, id: TypeId) -> u32 {
        let (id, _) = self.unaliased(id);
        match self.get(id).map(|found| &found.shape) {
            Some(Shape::Struct { size, .. } | Shape::Other(size)) => *size,
            Some(Shape::Array { of, count }) => self.size(*of).saturating_mul(*count),
            Some(Shape::Pointer(_)) => 8,
            _ => 0,
        }
    }

    /// It ends in an array of any length: memory for it may be larger than it says.
    pub fn is_open_ended(&self, id: TypeId) -> bool {
        let (id, _) = self.unaliased(id);
        match self.get(id).map(|found| &found.shape) {
            Some(Shape::Struct { members, .. }) => {
                members.last().is_some_and(|last| self.is_open_ended(last.kind))
            }
            Some(Shape::Array { count: 0, .. }) => true,
            _ => false,
        }
    }

    /// The ways to whatever of a type of these names begins at an offset; unions have several.
    pub fn paths_to<'t>(&'t self, id: TypeId, offset: u32, names: &[&str]) -> Vec<Vec<Step<'t>>> {
        let mut found = Vec::new();
        self.walk(id, offset, names, &mut Vec::new(), &mut found);
        found
    }

    fn walk<'t>(
        &'t self,
        id: TypeId,
        offset: u32,
        names: &[&str],
        steps: &mut Vec<Step<'t>>,
        found: &mut Vec<Vec<Step<'t>>>,
    ) {
        let (id, alias) = self.unaliased(id);
        let name = self.name(id);
        if offset == 0 && [name, alias].iter().any(|name| !name.is_empty() && names.contains(name)) {
            found.push(steps.clone());
            return;
        }
        if steps.len() >= MAX_DEPTH {
            return;
        }
        match self.get(id).map(|found| &found.shape) {
            Some(Shape::Struct { members, .. }) => {
                for member in members.iter().filter(|member| member.bit_offset % 8 == 0) {
                    let at = member.bit_offset / 8;
                    let inside = offset.checked_sub(at).filter(|inside| *inside < self.size(member.kind));
                    let Some(inside) = inside else { continue };
                    let within = if name.is_empty() { alias } else { name };
                    steps.push(Step { within, member: text(&self.strings, member.name).to_string() });
                    self.walk(member.kind, inside, names, steps, found);
                    steps.pop();
                }
            }
            Some(Shape::Array { of, .. }) => {
                let size = self.size(*of);
                let Some(index) = offset.checked_div(size) else { return };
                let Some(last) = steps.last_mut() else {
                    // A variable that is an array: the index stands alone.
                    steps.push(Step { within: "", member: format!("[{index}]") });
                    self.walk(*of, offset % size, names, steps, found);
                    steps.pop();
                    return;
                };
                let before = last.member.len();
                last.member.push_str(&format!("[{index}]"));
                self.walk(*of, offset % size, names, steps, found);
                if let Some(last) = steps.last_mut() {
                    last.member.truncate(before);
                }
            }
            _ => {}
        }
    }
}

fn text(strings: &[u8], at: u32) -> &str {
    let rest = strings.get(at as usize..).unwrap_or_default();
    let end = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
    std::str::from_utf8(&rest[..end]).unwrap_or("")
}

struct Header<'b> {
    types: &'b [u8],
    strings: &'b [u8],
}

impl Header<'_> {
    fn parse(bytes: &[u8]) -> io::Result<Header<'_>> {
        // A magic number and version 1.
        const MAGIC: u32 = 0x0001_eb9f;
        let mut reader = Reader { bytes, at: 0 };
        // Magic, version, flags; then lengths and places, from the end of the header on.
        let (magic, length) = (reader.u32()? & 0x00ff_ffff, reader.u32()?);
        if magic != MAGIC {
            return Err(invalid("not BTF of this byte order"));
        }
        let mut part = || -> io::Result<&[u8]> {
            let (at, size) = (reader.u32()? as usize, reader.u32()? as usize);
            let start = (length as usize).checked_add(at).ok_or_else(cut_off)?;
            bytes.get(start..start.checked_add(size).ok_or_else(cut_off)?).ok_or_else(cut_off)
        };
        Ok(Header { types: part()?, strings: part()? })
    }
}

struct Reader<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl Reader<'_> {
    fn u32(&mut self) -> io::Result<u32> {
        let bytes = self.bytes.get(self.at..self.at + 4).ok_or_else(cut_off)?;
        self.at += 4;
        Ok(u32::from_ne_bytes(bytes.try_into().expect("four bytes")))
    }

    fn skip(&mut self, words: u32) {
        self.at += words as usize * 4;
    }
}

fn read_type(
    reader: &mut Reader<'_>,
    type_id: &dyn Fn(u32) -> u32,
    string: &dyn Fn(u32) -> u32,
) -> io::Result<Type> {
    let (name, info, size_or_type) = (string(reader.u32()?), reader.u32()?, reader.u32()?);
    // Bits that were reserved, and zero, until both got more of them.
    let (count, kind, flag) = (info & 0x00ff_ffff, info >> 24 & 0x7f, info >> 31 != 0);
    let shape = match kind {
        1 => {
            reader.skip(1);
            Shape::Other(size_or_type)
        }
        2 => Shape::Pointer(type_id(size_or_type)),
        3 => {
            let (of, _index, count) = (type_id(reader.u32()?), reader.u32()?, reader.u32()?);
            Shape::Array { of, count }
        }
        4 | 5 => {
            let mut members = Vec::with_capacity(count as usize);
            for _ in 0..count {
                let (name, kind, offset) = (string(reader.u32()?), type_id(reader.u32()?), reader.u32()?);
                // With the flag the upper byte is the width of a bit field.
                let bit_offset = if flag { offset & 0x00ff_ffff } else { offset };
                members.push(Member { name, kind, bit_offset });
            }
            Shape::Struct { size: size_or_type, members }
        }
        6 => {
            reader.skip(2 * count);
            Shape::Other(size_or_type)
        }
        7 => Shape::Other(0),
        8..=11 | 18 => Shape::Alias(type_id(size_or_type)),
        12 => Shape::Function(type_id(size_or_type)),
        13 => {
            let mut arguments = Vec::with_capacity(count as usize);
            for _ in 0..count {
                reader.skip(1);
                arguments.push(type_id(reader.u32()?));
            }
            Shape::Prototype(arguments)
        }
        14 => {
            reader.skip(1);
            Shape::Variable(type_id(size_or_type))
        }
        15 => {
            reader.skip(3 * count);
            Shape::Other(0)
        }
        16 => Shape::Other(size_or_type),
        17 => {
            reader.skip(1);
            Shape::Other(0)
        }
        19 => {
            reader.skip(3 * count);
            Shape::Other(size_or_type)
        }
        _ => return Err(invalid(&format!("a kind of type that is not known, {kind}"))),
    };
    Ok(Type { name, shape })
}

fn cut_off() -> io::Error {
    invalid("BTF that ends early")
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
pub mod tests;
