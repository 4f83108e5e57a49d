//! A stack of a report, one row per function.

use super::hex;
use crate::model::{Frame, Function, Profile, Space, StackRef};
use crate::render::stacks;
use serde::Serialize;

#[derive(Serialize)]
pub(super) struct StackRow<'a> {
    status: StackStatus,
    frames: Option<Vec<FrameRow<'a>>>,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum StackStatus {
    Complete,
    Incomplete,
    Lost,
    NotTaken,
}

#[derive(Serialize)]
struct FrameRow<'a> {
    function: Option<&'a str>,
    module: Option<&'a str>,
    module_offset: Option<String>,
    addr: String,
    file: Option<&'a str>,
    line: Option<u32>,
    inlined: bool,
    kernel: bool,
}

impl<'a> StackRow<'a> {
    pub(super) fn of(profile: &'a Profile, stack: StackRef) -> StackRow<'a> {
        let status = match stack {
            StackRef::NotTaken => return StackRow { status: StackStatus::NotTaken, frames: None },
            StackRef::Lost => return StackRow { status: StackStatus::Lost, frames: None },
            StackRef::Stack(_) => match stacks::stack_of(profile, stack) {
                None => return StackRow { status: StackStatus::Lost, frames: None },
                Some(stack) if stack.incomplete => StackStatus::Incomplete,
                Some(_) => StackStatus::Complete,
            },
        };
        let frames =
            stacks::frames_innermost_first(profile, stack).into_iter().flat_map(FrameRow::all_of).collect();
        StackRow { status, frames: Some(frames) }
    }
}

impl<'a> FrameRow<'a> {
    /// One per function, innermost first like the stack; one without a function when there is no symbol.
    fn all_of(frame: &'a Frame) -> Vec<FrameRow<'a>> {
        let row = |function: Option<&'a Function>, inlined| FrameRow {
            function: function.map(|function| function.name.as_str()),
            module: frame.module.as_deref(),
            module_offset: frame.module_offset.map(hex),
            addr: hex(frame.addr),
            file: function.and_then(|function| function.file.as_deref()),
            line: function.and_then(|function| function.line),
            inlined,
            kernel: frame.space == Space::Kernel,
        };
        if frame.functions.is_empty() {
            return vec![row(None, false)];
        }
        frame
            .functions
            .iter()
            .enumerate()
            .rev()
            .map(|(depth, function)| row(Some(function), depth > 0))
            .collect()
    }
}
