//! Folded stacks: `process;main;read;[mutex pipe_read] 1234`, weighted by waited nanoseconds; of those who
//! waited, or of those who made them wait.

use super::Options;
use super::stacks::{PathFrame, PathKind, WaitPath, blame_paths, wait_paths};
use crate::model::Profile;
use std::collections::BTreeMap;
use std::io::{self, Write};

/// Sorted, each stack once. With `annotate`, frames carry FlameGraph's suffixes: `_[k]` kernel,
/// `_[i]` inlined.
pub fn render(profile: &Profile, options: &Options, out: &mut dyn Write) -> io::Result<()> {
    write(&wait_paths(profile, options.view), options, out)
}

/// The same of the holders' stacks.
pub fn render_blame(profile: &Profile, options: &Options, out: &mut dyn Write) -> io::Result<()> {
    write(&blame_paths(profile), options, out)
}

fn write(paths: &[WaitPath], options: &Options, out: &mut dyn Write) -> io::Result<()> {
    let mut merged: BTreeMap<String, u64> = BTreeMap::new();
    for path in paths {
        let frames: Vec<String> =
            path.frames.iter().map(|frame| folded_frame(frame, options.annotate)).collect();
        *merged.entry(frames.join(";")).or_default() += path.weight_ns;
    }
    for (stack, ns) in merged {
        writeln!(out, "{stack} {ns}")?;
    }
    Ok(())
}

fn folded_frame(frame: &PathFrame, annotate: bool) -> String {
    let suffix = match frame.kind {
        _ if !annotate => "",
        // FlameGraph allows one suffix; that a frame is the kernel's says more than that it is inlined.
        PathKind::Kernel | PathKind::KernelInlined => "_[k]",
        PathKind::UserInlined => "_[i]",
        PathKind::Process | PathKind::User | PathKind::Missing | PathKind::NoHolder | PathKind::Lock => "",
    };
    format!("{}{suffix}", frame.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::tests::profile;

    fn folded(annotate: bool) -> String {
        let mut out = Vec::new();
        render(&profile(), &Options { annotate, ..Options::default() }, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_are_sorted_and_each_stack_comes_once() {
        let text = folded(false);
        let stacks: Vec<&str> = text.lines().map(|line| line.rsplit_once(' ').unwrap().0).collect();
        assert!(stacks.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn waits_that_did_not_end_well_are_marked_and_counted() {
        let text = folded(false);
        assert!(text.contains(";mutex_lock;[mutex pipe_write] (aborted) 120400000\n"));
        assert!(text.contains(";mutex_lock_interruptible;[mutex rename_mutex] (still waiting) 9871000000\n"));
    }

    #[test]
    fn missing_stacks_leave_a_trace() {
        let text = folded(false);
        assert!(
            text.contains(
                "demo;[user stack lost];[kernel stack lost];[pcpu-sem:R 0xffffffff82a411c0] 41000\n"
            )
        );
        assert!(text.contains("demo;[unwind incomplete];libjemalloc.so.2+0x301a4;"));
    }

    #[test]
    fn holders_stacks_weigh_as_much_as_the_waits() {
        let profile = profile();
        let mut out = Vec::new();
        render_blame(&profile, &Options::default(), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let sum: u64 =
            text.lines().map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum();
        assert_eq!(sum, crate::render::View::Contention.weight_ns(&profile));
        assert!(text.contains(";demo::cache::Cache::evict;core::ptr::drop_in_place<"), "{text}");
        assert!(text.contains("[not released at the end];demo-main;[mutex rename_mutex] "));
        assert!(text.contains(
            "[not attributed: the owner is known, and no stack of it];demo-log;[mutex pipe_write] "
        ));
        assert!(text.contains(";demo::book::Shard::rebalance;syscall;[urwlock:W demo::book::Shard::update] (where it was taken) "));
        assert!(!text.contains("bpf_prog"));
    }

    #[test]
    fn the_profilers_own_frames_are_left_out() {
        assert!(!folded(false).contains("bpf_prog"));
    }

    #[test]
    fn annotations_mark_kernel_and_inlined_frames() {
        let text = folded(true);
        assert!(text.contains(";vfs_write_[k];pipe_write_[k];"));
        assert!(text.contains(";std::sys::fd::FileDesc::write_[i];__write;"));
        assert!(!folded(false).contains("_[k]"));
    }
}
