//! BTF written here, as a kernel and a module would have it.

use super::*;

/// Writes BTF. Types are numbered from `first_type` on, strings from `first_string`.
pub struct Builder {
    types: Vec<u8>,
    strings: Vec<u8>,
    next: u32,
    first_string: u32,
}

impl Default for Builder {
    fn default() -> Builder {
        Builder { types: vec![], strings: vec![0], next: 1, first_string: 0 }
    }
}

impl Builder {
    pub fn module_of(kernel: &Builder) -> Builder {
        let first_string = kernel.strings.len() as u32;
        Builder { types: vec![], strings: vec![0], next: kernel.next, first_string }
    }

    fn string(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        let at = self.first_string + self.strings.len() as u32;
        self.strings.extend(name.bytes().chain([0]));
        at
    }

    fn add(&mut self, name: &str, kind: u32, count: u32, size_or_type: u32, words: &[u32]) -> TypeId {
        let name = self.string(name);
        for word in [name, kind << 24 | count, size_or_type].iter().chain(words) {
            self.types.extend(word.to_ne_bytes());
        }
        self.next += 1;
        self.next - 1
    }

    pub fn int(&mut self, name: &str, size: u32) -> TypeId {
        self.add(name, 1, 0, size, &[size * 8])
    }

    pub fn pointer(&mut self, to: TypeId) -> TypeId {
        self.add("", 2, 0, to, &[])
    }

    pub fn array(&mut self, of: TypeId, count: u32) -> TypeId {
        self.add("", 3, 0, 0, &[of, 1, count])
    }

    pub fn typedef(&mut self, name: &str, of: TypeId) -> TypeId {
        self.add(name, 8, 0, of, &[])
    }

    /// Members with their offsets in bytes.
    pub fn structure(&mut self, name: &str, size: u32, members: &[(&str, TypeId, u32)]) -> TypeId {
        self.compound(4, name, size, members)
    }

    pub fn union(&mut self, name: &str, size: u32, members: &[(&str, TypeId, u32)]) -> TypeId {
        self.compound(5, name, size, members)
    }

    fn compound(&mut self, kind: u32, name: &str, size: u32, members: &[(&str, TypeId, u32)]) -> TypeId {
        let words: Vec<u32> =
            members.iter().flat_map(|(name, of, at)| [self.string(name), *of, at * 8]).collect();
        self.add(name, kind, members.len() as u32, size, &words)
    }

    pub fn function(&mut self, name: &str, arguments: &[TypeId]) -> TypeId {
        let words: Vec<u32> = arguments.iter().flat_map(|argument| [0, *argument]).collect();
        let prototype = self.add("", 13, arguments.len() as u32, 0, &words);
        self.add(name, 12, 0, prototype, &[])
    }

    pub fn variable(&mut self, name: &str, of: TypeId) -> TypeId {
        self.add(name, 14, 0, of, &[1])
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        for word in [0x0001_eb9f, 24, 0, types, types, strings] {
            bytes.extend(u32::to_ne_bytes(word));
        }
        bytes.extend(&self.types);
        bytes.extend(&self.strings);
        bytes
    }
}

fn shown(paths: Vec<Vec<Step<'_>>>) -> Vec<String> {
    let path = |steps: Vec<Step<'_>>| {
        let steps: Vec<String> =
            steps.into_iter().map(|step| format!("{}.{}", step.within, step.member)).collect();
        steps.join(" ")
    };
    paths.into_iter().map(path).collect()
}

const SPIN: &[&str] = &["spinlock_t", "raw_spinlock"];

/// struct mutex { long owner; raw_spinlock_t wait_lock; }; and what has one.
fn kernel() -> Builder {
    let mut b = Builder::default();
    let long = b.int("long", 8);
    let raw = b.structure("raw_spinlock", 4, &[]);
    let spin = b.structure("spinlock", 4, &[("rlock", raw, 0)]);
    let spin = b.typedef("spinlock_t", spin);
    let mutex = b.structure("mutex", 16, &[("owner", long, 0), ("wait_lock", raw, 8)]);
    let bucket = b.structure("bucket", 8, &[("lock", spin, 4)]);
    let buckets = b.array(bucket, 3);
    let either = b.union("", 16, &[("m", mutex, 0), ("n", long, 0)]);
    b.structure("thing", 64, &[("a", long, 0), ("", either, 8), ("bucket", buckets, 24), ("last", spin, 48)]);
    b
}

#[test]
fn what_lies_at_an_offset_is_found_through_unions_arrays_and_typedefs() {
    let types = Types::parse(&kernel().bytes()).unwrap();
    let thing = types.structure("thing").unwrap();
    let at = |offset, names: &[&str]| shown(types.paths_to(thing, offset, names));
    assert_eq!(at(8, &["mutex"]), ["thing. .m"]);
    assert_eq!(at(16, SPIN), ["thing. .m mutex.wait_lock"]);
    assert_eq!(at(28 + 16, SPIN), ["thing.bucket[2] bucket.lock"]);
    assert_eq!(at(48, SPIN), ["thing.last"], "not the lock inside the lock too");
    assert_eq!(at(24, SPIN), Vec::<String>::new());
    assert_eq!(at(8, SPIN), Vec::<String>::new());
    assert_eq!(at(64, SPIN), Vec::<String>::new(), "past its end");
}

#[test]
fn a_module_refers_to_the_types_and_strings_of_the_kernel() {
    let kernel = kernel();
    let mut types = Types::parse(&kernel.bytes()).unwrap();
    // 5 is struct mutex.
    for name in ["one", "two"] {
        let mut module = Builder::module_of(&kernel);
        let own = module.structure(name, 40, &[("own_lock", 5, 24)]);
        let pointer = module.pointer(own);
        module.function(&format!("{name}_open"), &[pointer]);
        types.add_module(&module.bytes()).unwrap();
    }
    for name in ["one", "two"] {
        let id = types.structure(name).unwrap();
        assert_eq!(shown(types.paths_to(id, 24, &["mutex"])), [format!("{name}.own_lock")]);
        assert_eq!(types.argument_structures(&format!("{name}_open")), [id]);
    }
    assert!(types.argument_structures("three_open").is_empty());
}

#[test]
fn sizes_and_variables() {
    let mut b = kernel();
    let elements = b.array(5, 4);
    b.variable("mutexes", elements);
    let tail = b.array(1, 0);
    let open = b.structure("open", 8, &[("count", 1, 0), ("tail", tail, 8)]);
    let types = Types::parse(&b.bytes()).unwrap();
    let mutexes = types.variable("mutexes").unwrap();
    assert_eq!(types.size(mutexes), 64);
    assert_eq!(shown(types.paths_to(mutexes, 32, &["mutex"])), [".[2]"]);
    assert!(types.is_open_ended(open) && !types.is_open_ended(types.structure("thing").unwrap()));
}

#[test]
fn damaged_btf_is_refused() {
    let bytes = kernel().bytes();
    assert!(Types::parse(&bytes[..bytes.len() - 40]).is_err());
    assert!(Types::parse(b"").is_err());
    let mut unknown = bytes.clone();
    unknown[24 + 7] = 99;
    assert!(Types::parse(&unknown).is_err());
    assert!(Types::parse(&[0; 64]).is_err());
}
