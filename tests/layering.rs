//! One door per heavy crate, and modules that point one way, checked from the sources.

use std::fs;
use std::path::{Path, PathBuf};

/// Crate as it is written in code → where it may appear.
const DOORS: [(&str, &[&str]); 9] = [
    ("libbpf_rs", &["src/bpf/", "src/kernel/facts.rs"]),
    ("libbpf_sys", &["src/bpf/", "src/kernel/facts.rs"]),
    ("plain::", &["src/bpf/"]),
    ("blazesym", &["src/symbolize/"]),
    ("gimli", &["src/unwind/"]),
    ("inferno", &["src/render/flamegraph.rs"]),
    ("hdrhistogram", &["src/model/hist.rs"]),
    ("clap", &["src/cli/"]),
    ("indicatif", &["src/cli/"]),
];

/// Module → modules of ours it may use (src/lib.rs draws the picture).
const MAY_USE: [(&str, &[&str]); 13] = [
    ("model", &[]),
    ("units", &[]),
    ("failure", &[]),
    ("kernel", &["model"]),
    ("attach", &["kernel", "model"]),
    ("bpf", &["attach", "kernel", "model", "unwind"]),
    ("aggregate", &["model"]),
    ("symbolize", &["model"]),
    ("futexes", &["model", "symbolize"]),
    ("naming", &["kernel", "model", "symbolize"]),
    ("unwind", &["symbolize"]),
    ("render", &["model", "symbolize", "units"]),
    ("doctor", &["attach", "kernel", "model", "failure"]),
];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("src is readable").flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// (path from the root, code without comments) of every source.
fn code() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    sources(&root.join("src"), &mut found);
    assert!(found.len() > 20, "the sources are somewhere else now");
    found
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(root).expect("below the root").display().to_string();
            let text = fs::read_to_string(&path).expect("a source is text");
            let code: Vec<&str> = text.lines().map(|line| line.split("//").next().unwrap_or("")).collect();
            (name, code.join("\n"))
        })
        .collect()
}

#[test]
fn each_heavy_crate_has_one_door() {
    for (name, code) in code() {
        for (heavy, doors) in DOORS {
            if code.contains(heavy) {
                assert!(doors.iter().any(|door| name.starts_with(door)), "{name} uses {heavy}");
            }
        }
    }
}

#[test]
fn modules_point_one_way() {
    for (name, code) in code() {
        let inside = name.strip_prefix("src/").expect("below src");
        let module = inside.split(['/', '.']).next().expect("a first part");
        let Some((_, allowed)) = MAY_USE.iter().find(|(known, _)| *known == module) else {
            assert!(
                ["lib", "main", "cli", "session", "unwind"].contains(&module),
                "{module} has no place in the picture"
            );
            continue;
        };
        // Tests may look wherever they like.
        let code = code.split("#[cfg(test)]").next().expect("a first part");
        if inside.ends_with("selftest.rs") {
            continue;
        }
        for used in code.split("crate::").skip(1) {
            let used = used.split(|c: char| !c.is_alphanumeric() && c != '_').next().expect("a name");
            assert!(used == module || allowed.contains(&used), "{name} uses crate::{used}");
        }
    }
}
