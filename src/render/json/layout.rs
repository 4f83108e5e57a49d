//! Indented JSON with short rows.

use std::io::{self, Write};

/// Indented, but a histogram's `[low, high, count]` stays on one line: for a reader and for `diff`.
#[derive(Default)]
pub(super) struct RowFormatter {
    pretty: serde_json::ser::PrettyFormatter<'static>,
    /// Open containers, outermost first: is it an array?
    open: Vec<bool>,
    /// Depth of the array that is written on one line.
    row: Option<usize>,
}

impl serde_json::ser::Formatter for RowFormatter {
    fn begin_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        if self.row.is_none() && self.open.last() == Some(&true) {
            self.row = Some(self.open.len());
        }
        self.open.push(true);
        if self.row.is_some() { out.write_all(b"[") } else { self.pretty.begin_array(out) }
    }

    fn end_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open.pop();
        if self.row.is_none() {
            return self.pretty.end_array(out);
        }
        if self.row == Some(self.open.len()) {
            self.row = None;
        }
        out.write_all(b"]")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        match self.row {
            Some(_) if first => Ok(()),
            Some(_) => out.write_all(b", "),
            None => self.pretty.begin_array_value(out, first),
        }
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        if self.row.is_some() { Ok(()) } else { self.pretty.end_array_value(out) }
    }

    fn begin_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open.push(false);
        self.pretty.begin_object(out)
    }

    fn end_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open.pop();
        self.pretty.end_object(out)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.pretty.begin_object_key(out, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.pretty.begin_object_value(out)
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.pretty.end_object_value(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Serialize;

    #[test]
    fn arrays_inside_arrays_are_written_on_one_line() {
        let mut out = Vec::new();
        let mut serializer = serde_json::Serializer::with_formatter(&mut out, RowFormatter::default());
        serde_json::json!({"a": [], "h": [[1, 2, 3], [4, 5, 6]], "n": [1]})
            .serialize(&mut serializer)
            .unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(
            text,
            "{\n  \"a\": [],\n  \"h\": [\n    [1, 2, 3],\n    [4, 5, 6]\n  ],\n  \"n\": [\n    1\n  ]\n}"
        );
    }
}
