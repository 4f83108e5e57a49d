//! Text that has to fit a number of terminal columns.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Columns a text takes on a terminal.
pub(super) fn width(text: &str) -> usize {
    // A terminal may apply a sequence (emoji with a joiner) or draw its parts: count the wider.
    let parts: usize = text.chars().map(|c| c.width().unwrap_or(0)).sum();
    parts.max(text.width())
}

/// Control characters replaced: names come from other people's processes and must neither break a
/// line nor reach the terminal as an escape sequence.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// At most `columns` wide: the middle is replaced by `…`, since both ends of a function's name say
/// more than its middle.
pub(super) fn elide(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_string();
    }
    if columns == 0 {
        return String::new();
    }
    let chars: Vec<char> = text.chars().collect();
    let room = columns - 1;
    // The end is the more telling one (`…::Mutex<T>::lock`), so it gets the odd column.
    let tail_start = end_that_fits(&chars, room.div_ceil(2));
    let mut head: String = String::new();
    let mut left = room - chars[tail_start..].iter().map(|c| c.width().unwrap_or(0)).sum::<usize>();
    for c in &chars[..tail_start] {
        let w = c.width().unwrap_or(0);
        if w > left {
            break;
        }
        left -= w;
        head.push(*c);
    }
    let mut tail: &[char] = &chars[tail_start..];
    loop {
        let elided = format!("{head}…{}", tail.iter().collect::<String>());
        if width(&elided) <= columns {
            return elided;
        }
        // A sequence that is wider than its parts: give up characters until it fits.
        if tail.is_empty() {
            head.pop();
        } else {
            tail = &tail[1..];
        }
    }
}

fn end_that_fits(chars: &[char], columns: usize) -> usize {
    let mut used = 0;
    let mut start = chars.len();
    while start > 0 {
        let w = chars[start - 1].width().unwrap_or(0);
        if used + w > columns {
            break;
        }
        used += w;
        start -= 1;
    }
    start
}

pub(super) fn pad_left(text: &str, columns: usize) -> String {
    format!("{}{text}", " ".repeat(columns.saturating_sub(width(text))))
}

pub(super) fn pad_right(text: &str, columns: usize) -> String {
    format!("{text}{}", " ".repeat(columns.saturating_sub(width(text))))
}

/// Breaks a text between words into lines of at most `columns`; all but the first start with `indent`
/// spaces. A word longer than a line is elided.
pub(super) fn wrap(text: &str, columns: usize, indent: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut line = String::new();
    let mut empty = true;
    for word in text.split_whitespace() {
        if !empty && width(&line) + 1 + width(word) > columns {
            lines.push(std::mem::take(&mut line));
            line = " ".repeat(indent);
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(&elide(word, columns.saturating_sub(width(&line))));
        empty = false;
    }
    if !empty {
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_left_alone() {
        assert_eq!(elide("pipe_write", 10), "pipe_write");
    }

    #[test]
    fn long_names_lose_their_middle() {
        assert_eq!(elide("abcdefghij", 9), "abcd…ghij");
        assert_eq!(elide("abcdefghij", 4), "a…ij");
        assert_eq!(elide("abcdefghij", 1), "…");
        assert_eq!(elide("abcdefghij", 0), "");
    }

    #[test]
    fn nothing_elided_is_too_wide_whatever_it_is_made_of() {
        for text in [
            "锁竞争分析器::互斥锁::等待",
            "👩‍👩‍👧‍👧👩‍👩‍👧‍👧👩‍👩‍👧‍👧",
            "❤\u{fe0f}❤\u{fe0f}❤\u{fe0f}❤\u{fe0f}",
            "e\u{301}e\u{301}e\u{301}",
        ] {
            for columns in 0..30 {
                assert!(width(&elide(text, columns)) <= columns, "{text} in {columns}");
            }
        }
    }

    #[test]
    fn wrapped_lines_keep_every_word() {
        let text = "a few words and antidisestablishmentarianism at the end";
        for columns in 12..70 {
            let lines = wrap(text, columns, 4);
            assert!(lines.iter().all(|line| width(line) <= columns));
            assert!(lines[1..].iter().all(|line| line.starts_with("    ")));
        }
        assert_eq!(wrap(text, 60, 2).len(), 1);
        assert!(wrap("  ", 60, 2).is_empty());
    }

    #[test]
    fn escape_sequences_do_not_reach_the_terminal() {
        assert_eq!(clean("a\x1b[31m\nb"), "a?[31m?b");
    }
}
