//! Stacks and frames, before and after symbolization.

use serde::{Deserialize, Serialize};

/// Where the stack of an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StackRef {
    /// Index into [`super::Profile::stacks`].
    Stack(u32),
    /// It was wanted and could not be had (table full, unwind failed); the loss is counted.
    Lost,
    /// It was not asked for (a futex wait's kernel stack is always the same).
    NotTaken,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Space {
    Kernel,
    User,
}

/// A stack, innermost frame (the leaf) first.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Stack {
    /// Indices into [`super::Profile::frames`].
    pub frames: Vec<u32>,
    /// The unwinder stopped before the thread's first function; callers are missing.
    pub incomplete: bool,
}

/// One return address, in the kernel or in one process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    pub space: Space,
    /// The process of a user frame, `None` in the kernel.
    pub pid: Option<u32>,
    /// As the unwinder gave it: a return address, except in a leaf.
    pub addr: u64,
    /// The innermost frame of its stack: `addr` was executing itself. Symbols of other frames are
    /// looked up at `addr - 1`, inside the call.
    pub leaf: bool,
    /// File name of the mapping (`libc.so.6`), or the kernel module; `None` when unknown or the kernel proper.
    pub module: Option<String>,
    /// Offset in that file; `None` when unknown.
    pub module_offset: Option<u64>,
    /// The function, then the functions inlined into it at this address, outermost first.
    /// Empty: no symbol was found.
    pub functions: Vec<Function>,
}

impl Frame {
    pub fn unsymbolized(space: Space, pid: Option<u32>, addr: u64, leaf: bool) -> Frame {
        Frame { space, pid, addr, leaf, module: None, module_offset: None, functions: Vec::new() }
    }

    /// What to print for a frame no symbol was found for: `libc.so.6+0x8512b`, else `0x7f…`.
    pub fn place(&self) -> String {
        match (&self.module, self.module_offset) {
            (Some(module), Some(offset)) => format!("{module}+{offset:#x}"),
            (Some(module), None) => format!("[{module}]"),
            _ => format!("{:#x}", self.addr),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Function {
    /// Demangled.
    pub name: String,
    pub file: Option<String>,
    pub line: Option<u32>,
}
