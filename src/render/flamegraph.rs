//! Flame graphs of waited time, one SVG file each: by the stacks that waited, and by those of the holders
//! that made them wait.

use super::stacks::{PathFrame, PathKind, WaitPath, blame_paths, wait_paths};
use super::text::{clean, elide};
use super::{Options, View, notes};
use crate::model::{Conservation, Profile};
use crate::units::{count, duration};
use anyhow::Context;
use inferno::flamegraph::color::{BackgroundColor, Color, PaletteMap};
use std::collections::{BTreeMap, HashMap};
use std::io::Write;

/// Frames narrower than this share (in percent) are left out: nobody can read them and they make the file several times as large.
const MIN_WIDTH_PERCENT: f64 = 0.1;
/// Characters of title and subtitle that fit the initial width of 1200 pixels.
const TITLE_CHARS: usize = 90;
const SUBTITLE_CHARS: usize = 150;

pub fn render(profile: &Profile, options: &Options, out: &mut dyn Write) -> anyhow::Result<()> {
    let waits = match options.view {
        View::Contention => "Lock waits",
        View::Idle => "Idle and other waits",
    };
    let drawing = Drawing {
        title: format!("{waits} of {}", notes::target(profile)),
        subtitle: subtitle(profile, options.view),
        empty: notes::no_waits(profile, options.view),
        palette: WAITERS,
    };
    drawing.draw(&wait_paths(profile, options.view), out)
}

/// Holders' stacks by the waiter-time they caused.
pub fn render_blame(profile: &Profile, _options: &Options, out: &mut dyn Write) -> anyhow::Result<()> {
    let conservation = Conservation::of(profile);
    let paths = if conservation.is_some() { blame_paths(profile) } else { Vec::new() };
    let drawing = Drawing {
        title: format!("Who made others wait: {}", notes::target(profile)),
        subtitle: blame_subtitle(profile, conservation),
        empty: match View::Contention.weight_ns(profile) {
            0 => notes::no_waits(profile, View::Contention),
            _ => super::blame::NO_ACCOUNT.to_string(),
        },
        palette: HOLDERS,
    };
    drawing.draw(&paths, out)
}

struct Drawing {
    title: String,
    subtitle: String,
    /// Instead of the subtitle when there is nothing to draw.
    empty: String,
    palette: Palette,
}

impl Drawing {
    fn draw(&self, paths: &[WaitPath], out: &mut dyn Write) -> anyhow::Result<()> {
        let mut merged: BTreeMap<String, u64> = BTreeMap::new();
        let mut names = Names::new(self.palette);
        // The frame below all others has no name.
        names.colors.insert("", Color { r: 225, g: 225, b: 228 });
        for path in paths {
            let frames: Vec<String> = path.frames.iter().map(|frame| names.add(frame)).collect();
            *merged.entry(frames.join(";")).or_default() += path.weight_ns;
        }
        let title = elide(&self.title, TITLE_CHARS);
        let total_ns: u64 = merged.values().sum();
        if total_ns == 0 {
            return Ok(write_empty(&title, &elide(&self.empty, SUBTITLE_CHARS), out)?);
        }

        let (factor, unit) = unit_for(total_ns);
        let mut options = inferno::flamegraph::Options::default();
        options.title = title;
        options.subtitle = Some(elide(&self.subtitle, SUBTITLE_CHARS));
        options.count_name = unit.to_string();
        options.factor = factor;
        options.name_type = "Frame:".to_string();
        options.min_width = MIN_WIDTH_PERCENT;
        // Inferno would quote a list of fonts as one name; the generic one exists everywhere.
        options.font_type = "monospace".to_string();
        options.font_width = 0.61;
        options.deterministic = true;
        options.no_sort = true;
        options.bgcolors = Some(BackgroundColor::Flat(Color { r: 252, g: 252, b: 252 }));
        options.palette_map = Some(&mut names.colors);

        let mut lines: Vec<String> = merged.iter().map(|(stack, ns)| format!("{stack} {ns}")).collect();
        // Inferno merges neighbours, so the order has to be that of its own lines.
        lines.sort_unstable();
        let mut svg = Vec::new();
        inferno::flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), &mut svg)
            .context("cannot draw the flame graph")?;
        let svg = String::from_utf8(svg).context("the flame graph is not UTF-8")?;
        out.write_all(with_full_names(&svg, &names.full).as_bytes())?;
        Ok(())
    }
}

/// Inferno prints whole units and derives percentages from them: with milliseconds, a profile of 12 ms
/// would have every percentage wrong by up to 4. The unit leaves at least four digits.
fn unit_for(total_ns: u64) -> (f64, &'static str) {
    match total_ns {
        0..10_000_000 => (1.0, "ns"),
        10_000_000..10_000_000_000 => (1e-3, "µs"),
        _ => (1e-6, "ms"),
    }
}

fn subtitle(profile: &Profile, view: View) -> String {
    let ended: u64 = view.rows(profile).map(|lock| lock.wait.contended).sum();
    let (ended_how, leaf) = match view {
        View::Contention => ("contended", "lock"),
        View::Idle => ("waits", "waited for"),
    };
    // Stacks, frames and events have no common sum; the table lists them.
    let lost = match profile.losses.iter().filter(|loss| loss.count > 0).count() {
        0 => "nothing lost".to_string(),
        1 => "1 kind of loss (see table)".to_string(),
        n => format!("{n} kinds of loss (see table)"),
    };
    format!(
        "{} traced, {} waited, {} {ended_how}, {lost}  |  blue: user, light: inlined, orange: kernel, red: {leaf}",
        duration(profile.meta.duration_ns),
        duration(view.weight_ns(profile)),
        count(ended),
    )
}

fn blame_subtitle(profile: &Profile, conservation: Option<Conservation>) -> String {
    let sums = conservation.unwrap_or_default();
    format!(
        "{} traced, {} waited, {} charged to holders{}  |  green: user, light: inlined, aqua: kernel, red: lock, grey: nobody",
        duration(profile.meta.duration_ns),
        duration(sums.waited_ns),
        duration(sums.blamed_ns),
        if sums.difference_ns() == 0 { "" } else { " (sums differ, see table)" },
    )
}

type Rgb = (u8, u8, u8);

#[derive(Clone, Copy)]
struct Palette {
    user: Rgb,
    user_inlined: Rgb,
    kernel: Rgb,
    kernel_inlined: Rgb,
}

const WAITERS: Palette = Palette {
    user: (132, 178, 230),
    user_inlined: (206, 227, 249),
    kernel: (245, 172, 92),
    kernel_inlined: (250, 216, 172),
};
const HOLDERS: Palette = Palette {
    user: (146, 205, 138),
    user_inlined: (210, 236, 204),
    kernel: (98, 196, 190),
    kernel_inlined: (182, 228, 224),
};

/// Frame names as inferno gets them: shortened, suffixed by kind, each with a colour.
struct Names {
    palette: Palette,
    colors: PaletteMap,
    /// Shown name → the full name, or nothing when several became the same.
    full: HashMap<String, Option<String>>,
}

impl Names {
    fn new(palette: Palette) -> Names {
        Names { palette, colors: PaletteMap::default(), full: HashMap::new() }
    }

    fn add(&mut self, frame: &PathFrame) -> String {
        let shown = match frame.kind {
            PathKind::User | PathKind::UserInlined => short_name(&frame.name),
            _ => frame.name.clone(),
        };
        if shown != frame.name {
            let full = self.full.entry(shown.clone()).or_insert_with(|| Some(frame.name.clone()));
            if full.as_ref().is_some_and(|full| *full != frame.name) {
                *full = None;
            }
        }
        // Inferno takes these four suffixes off before it prints a name, so they can tell apart by
        // colour what has the same name. Only `_[k]` and `_[i]` mean here what they mean elsewhere.
        let (suffix, (r, g, b)) = match frame.kind {
            PathKind::Process => ("_[j]", (205, 205, 212)),
            PathKind::User => ("", self.palette.user),
            PathKind::UserInlined => ("_[i]", self.palette.user_inlined),
            PathKind::Kernel => ("_[k]", self.palette.kernel),
            PathKind::KernelInlined => ("_[k]", self.palette.kernel_inlined),
            PathKind::Missing | PathKind::NoHolder => ("", (190, 190, 190)),
            PathKind::Lock => ("_[w]", (236, 112, 99)),
        };
        let name = format!("{shown}{suffix}");
        if self.colors.get(&name).is_none() {
            self.colors.insert(&name, shade((r, g, b), &name));
        }
        name
    }
}

/// The same name has the same shade everywhere, and neighbours can be told apart.
fn shade((r, g, b): (u8, u8, u8), name: &str) -> Color {
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let delta = (hash >> 32) % 19;
    let shift = |channel: u8| (i64::from(channel) + delta as i64 - 9).clamp(0, 255) as u8;
    Color { r: shift(r), g: shift(g), b: shift(b) }
}

/// Rust and C++ names spend most of their length on generic arguments: `f<…>` for `f<Vec<…>, …>`, and
/// `<Vec as Debug>::fmt` for `<alloc::vec::Vec<T> as core::fmt::Debug>::fmt`. Short names stay whole.
pub(super) fn short_name(name: &str) -> String {
    const LONG: usize = 32;
    if name.chars().count() <= LONG || name.contains("operator") {
        return name.to_string();
    }
    let qualified = name.strip_prefix('<').and_then(|rest| {
        let close = closing_bracket(rest)?;
        let (inner, path) = (&rest[..close], &rest[close + 1..]);
        let path = without_generics(path)?;
        let short = match split_as(inner) {
            Some((ty, of)) => format!("<{} as {}>", last_segment(ty)?, last_segment(of)?),
            None => format!("<{}>", last_segment(inner)?),
        };
        Some(short + &path)
    });
    qualified.or_else(|| without_generics(name)).unwrap_or_else(|| name.to_string())
}

/// Where the bracket opened just before `text` closes. The `>` of `->` closes nothing.
fn closing_bracket(text: &str) -> Option<usize> {
    let mut depth = 1;
    let mut before = ' ';
    for (at, c) in text.char_indices() {
        match c {
            '<' => depth += 1,
            '>' if before != '-' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(at);
        }
        before = c;
    }
    None
}

fn split_as(inner: &str) -> Option<(&str, &str)> {
    inner.match_indices(" as ").map(|(at, word)| (&inner[..at], &inner[at + word.len()..])).find(|(ty, _)| {
        // The one outside all brackets.
        ty.matches('<').count() == ty.matches('>').count() - ty.matches("->").count()
    })
}

/// `alloc::vec::Vec<T>` → `Vec`. Types that are no path (`[T]`, `(A, B)`) only lose their arguments.
fn last_segment(ty: &str) -> Option<String> {
    let short = without_generics(ty)?;
    if short.contains(['(', '[']) {
        return Some(short);
    }
    let path = short.split('<').next().unwrap_or_default();
    Some(path.rsplit("::").next().unwrap_or_default().to_string())
}

/// `None` when the brackets do not match: then it is no name this knows how to shorten.
fn without_generics(name: &str) -> Option<String> {
    const SHORT_ARGUMENTS: usize = 8;
    let mut short = String::new();
    let mut rest = name;
    while let Some(open) = rest.find('<') {
        let after = &rest[open + 1..];
        let close = closing_bracket(after)?;
        short.push_str(&rest[..open]);
        let arguments = &after[..close];
        let arguments = if arguments.chars().count() <= SHORT_ARGUMENTS { arguments } else { "…" };
        short.push_str(&format!("<{arguments}>"));
        rest = &after[close + 1..];
    }
    short.push_str(rest);
    Some(short)
}

/// Adds full names to tooltips: `f<…> (12 ms, 3.40%)` becomes `f<…> (12 ms, 3.40%, f<Vec<u8>>)`.
///
/// Inferno's script shows a tooltip without its last parenthesis as the frame's text, and has no place
/// for a second name; so the full name goes into that parenthesis and may contain none itself.
fn with_full_names(svg: &str, full: &HashMap<String, Option<String>>) -> String {
    let mut out = String::with_capacity(svg.len());
    let mut rest = svg;
    while let Some(end) = rest.find(")</title>") {
        let (before, after) = rest.split_at(end);
        out.push_str(before);
        let title = before.rsplit("<title>").next().unwrap_or_default();
        let shown = title.rsplit_once(" (").map_or("", |(shown, _)| shown);
        if let Some(Some(name)) = full.get(&unescaped(shown)) {
            out.push_str(", ");
            out.push_str(&escaped(&name.replace('(', "❨").replace(')', "❩")));
        }
        let (close, after) = after.split_at(")</title>".len());
        out.push_str(close);
        rest = after;
    }
    out.push_str(rest);
    out
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn unescaped(text: &str) -> String {
    let text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&apos;", "'");
    text.replace("&amp;", "&")
}

/// Inferno treats a graph without samples as an error.
fn write_empty(title: &str, why: &str, out: &mut dyn Write) -> std::io::Result<()> {
    let (title, why) = (escaped(&clean(title)), escaped(&clean(why)));
    write!(
        out,
        r##"<?xml version="1.0" standalone="no"?>
<svg version="1.1" width="1200" height="100" viewBox="0 0 1200 100" xmlns="http://www.w3.org/2000/svg">
<rect width="100%" height="100" fill="#fcfcfc"/>
<g font-family="monospace" text-anchor="middle">
<text x="50%" y="30" font-size="17">{title}</text>
<text x="50%" y="64" font-size="12">{why}</text>
</g>
</svg>
"##
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_lose_their_generic_arguments() {
        for (full, short) in [
            ("std::sync::mutex::Mutex<T>::lock", "std::sync::mutex::Mutex<T>::lock"),
            (
                "core::ptr::drop_in_place<alloc::boxed::Box<dyn core::ops::FnMut<()>>>",
                "core::ptr::drop_in_place<…>",
            ),
            (
                "<alloc::vec::Vec<T,A> as core::fmt::Debug>::fmt::really_long",
                "<Vec as Debug>::fmt::really_long",
            ),
            (
                "std::thread::Builder::spawn_unchecked_<fn(u32) -> u32, u32>::{{closure}}",
                "std::thread::Builder::spawn_unchecked_<…>::{{closure}}",
            ),
            (
                "std::operator<< <std::char_traits<char> >(std::ostream&)",
                "std::operator<< <std::char_traits<char> >(std::ostream&)",
            ),
            ("broken<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<", "broken<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<"),
        ] {
            assert_eq!(short_name(full), short);
        }
    }

    fn drawn(profile: &Profile) -> String {
        drawn_as(profile, View::Contention)
    }

    fn drawn_as(profile: &Profile, view: View) -> String {
        let mut out = Vec::new();
        render(profile, &Options { view, ..Options::default() }, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_profile_without_waits_is_a_drawing_that_says_so() {
        let mut profile = crate::render::tests::profile();
        profile.locks.clear();
        profile.events.waits_begun = 0;
        profile.meta.target.comms = vec!["<&>".to_string()];
        let svg = drawn(&profile);
        assert!(svg.contains("No contention seen: 7 hooks were attached"));
        assert!(svg.contains("Lock waits of &lt;&amp;&gt; (pid 4242)"));
        assert!(svg.trim_end().ends_with("</svg>"));
    }

    #[test]
    fn every_wait_is_in_the_drawing() {
        let profile = crate::render::tests::profile();
        for view in [View::Contention, View::Idle] {
            let total = format!("total_samples=\"{}\"", view.weight_ns(&profile));
            assert!(drawn_as(&profile, view).contains(&total), "{view:?}");
        }
    }

    #[test]
    fn waits_that_are_not_for_locks_have_a_drawing_of_their_own() {
        let profile = crate::render::tests::profile();
        let (locks, idle) = (drawn(&profile), drawn_as(&profile, View::Idle));
        assert!(locks.contains("Lock waits of demo") && locks.contains("[umutex "));
        assert!(!locks.contains("[condvar ") && !locks.contains("[join "));
        assert!(idle.contains("Idle and other waits of demo") && idle.contains("[condvar "));
        assert!(!idle.contains("[umutex ") && !idle.contains("[mutex "));
    }

    #[test]
    fn the_holders_drawing_is_of_the_same_time_in_other_colours() {
        let mut profile = crate::render::tests::profile();
        let blame = |profile: &Profile| {
            let mut out = Vec::new();
            render_blame(profile, &Options::default(), &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        let svg = blame(&profile);
        assert!(svg.contains("Who made others wait: demo (pid 4242)"));
        let total = format!("total_samples=\"{}\"", View::Contention.weight_ns(&profile));
        assert!(svg.contains(&total) && drawn(&profile).contains(&total));
        assert!(svg.contains("[handoff, nobody held it]") && svg.contains("[not released at the end]"));
        // Waits without an account are not left out.
        profile.locks[0].blame = None;
        let svg = blame(&profile);
        assert!(svg.contains(&total) && svg.contains("[no account of holders]"));
        profile.locks.iter_mut().for_each(|lock| lock.blame = None);
        assert!(blame(&profile).contains("Who held the locks is not known"));
    }

    #[test]
    fn suffixes_that_choose_colours_are_not_shown() {
        let svg = drawn(&crate::render::tests::profile());
        let body = svg.rsplit("id=\"frames\"").next().unwrap();
        for suffix in ["_[k]", "_[i]", "_[w]", "_[j]"] {
            assert!(!body.contains(suffix), "{suffix}");
        }
    }

    #[test]
    fn tooltips_keep_the_full_name() {
        let full = HashMap::from([("f<…>".to_string(), Some("f<Fn()>".to_string()))]);
        assert_eq!(
            with_full_names("<title>f&lt;…&gt; (1 ms, 2.00%)</title><title>g (1 ms, 2.00%)</title>", &full),
            "<title>f&lt;…&gt; (1 ms, 2.00%, f&lt;Fn❨❩&gt;)</title><title>g (1 ms, 2.00%)</title>"
        );
    }

    #[test]
    fn the_unit_leaves_four_digits() {
        for total_ns in [1_000, 9_999_999, 10_000_000, 9_999_999_999, 10_000_000_000] {
            let (factor, _) = unit_for(total_ns);
            assert!(total_ns as f64 * factor >= 1_000.0);
        }
    }
}
