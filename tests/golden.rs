//! Every profile in `flamegraphs/` renders to the bytes that lie beside it.
//!
//! `LOCKPROF_BLESS=1 cargo test --test golden` rewrites them; review the difference before committing
//! it. A missing file fails, so that a case cannot lose its goldens unnoticed.

mod synthetic;

use lockprof::model::Profile;
use lockprof::render::{self, By, Options, View};
use std::fs;
use std::path::{Path, PathBuf};

fn cases() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("flamegraphs");
    let mut cases: Vec<PathBuf> = fs::read_dir(&root)
        .expect("flamegraphs/ exists")
        .map(|entry| entry.expect("flamegraphs/ is readable").path())
        .filter(|path| path.join("profile.json").exists())
        .collect();
    cases.sort();
    cases
}

fn load(case: &Path) -> Profile {
    let text = fs::read_to_string(case.join("profile.json")).expect("the profile is readable");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", case.display()))
}

/// A golden that nobody can review is none: reports repeat every stack. `every_report_is_valid_by_the_published_schema`
/// looks at those of large cases too.
const LARGEST_REPORT: usize = 512 << 10;

/// Too large to be kept: then it is not there either, out of date.
fn check_absent(path: &Path) -> Option<String> {
    if blessing() {
        let _ = fs::remove_file(path);
    }
    path.exists().then(|| format!("{} is too large to be a golden", path.display()))
}

fn blessing() -> bool {
    std::env::var_os("LOCKPROF_BLESS").is_some_and(|value| value == "1")
}

/// Rewrites the file when blessing; otherwise says what is wrong with it, if anything.
fn check(path: &Path, rendered: &[u8]) -> Option<String> {
    if blessing() {
        // In one step, since another test may be reading it.
        let new = path.with_extension("new");
        fs::write(&new, rendered).expect("the golden is writable");
        fs::rename(&new, path).expect("the golden is writable");
        return None;
    }
    let Ok(golden) = fs::read(path) else { return Some(format!("{} is missing", path.display())) };
    if golden == rendered {
        return None;
    }
    let (golden, rendered) = (String::from_utf8_lossy(&golden), String::from_utf8_lossy(rendered));
    let line = golden.lines().zip(rendered.lines()).take_while(|(a, b)| a == b).count();
    let at = |text: &str| text.lines().nth(line).unwrap_or("(end)").chars().take(300).collect::<String>();
    Some(format!(
        "{}:{}\n  golden:   {}\n  rendered: {}",
        path.display(),
        line + 1,
        at(&golden),
        at(&rendered)
    ))
}

fn rendered(render: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    render(&mut out);
    out
}

fn outputs(profile: &Profile) -> Vec<(&'static str, Vec<u8>)> {
    let narrow = Options { width: Some(80), ..Options::default() };
    let wide = Options { width: Some(140), ..Options::default() };
    vec![
        ("table.txt", rendered(|out| render::table::render(profile, &narrow, out).unwrap())),
        ("table-wide.txt", rendered(|out| render::table::render(profile, &wide, out).unwrap())),
        ("histogram.txt", rendered(|out| render::histogram::render(profile, &narrow, out).unwrap())),
        ("folded.txt", rendered(|out| render::folded::render(profile, &narrow, out).unwrap())),
        ("wait.svg", rendered(|out| render::flamegraph::render(profile, &narrow, out).unwrap())),
        ("report.json", rendered(|out| render::json::render(profile, &narrow, out).unwrap())),
    ]
}

/// Who made others wait, of profiles that have an account of it.
fn blame_outputs(profile: &Profile) -> Vec<(&'static str, Vec<u8>)> {
    let narrow = Options { by: By::Holder, width: Some(80), ..Options::default() };
    let wide = Options { width: Some(160), ..narrow.clone() };
    vec![
        ("holders.txt", rendered(|out| render::table::render(profile, &narrow, out).unwrap())),
        ("holders-wide.txt", rendered(|out| render::table::render(profile, &wide, out).unwrap())),
        ("blame.svg", rendered(|out| render::flamegraph::render_blame(profile, &narrow, out).unwrap())),
        ("blame-folded.txt", rendered(|out| render::folded::render_blame(profile, &narrow, out).unwrap())),
    ]
}

/// What `--idle` shows; only the synthetic case has such waits.
fn idle_outputs(profile: &Profile) -> Vec<(&'static str, Vec<u8>)> {
    let narrow = Options { view: View::Idle, width: Some(80), ..Options::default() };
    vec![
        ("table-idle.txt", rendered(|out| render::table::render(profile, &narrow, out).unwrap())),
        ("histogram-idle.txt", rendered(|out| render::histogram::render(profile, &narrow, out).unwrap())),
        ("folded-idle.txt", rendered(|out| render::folded::render(profile, &narrow, out).unwrap())),
    ]
}

#[test]
fn every_case_renders_to_its_goldens() {
    the_synthetic_case_is_what_its_source_says();
    let cases = cases();
    assert!(!cases.is_empty());
    let wrong: Vec<String> = cases
        .iter()
        .flat_map(|case| {
            let profile = load(case);
            let mut wanted = outputs(&profile);
            if profile.locks.iter().any(|lock| !lock.is_contention()) {
                wanted.extend(idle_outputs(&profile));
            }
            if profile.locks.iter().any(|lock| lock.blame.is_some()) {
                wanted.extend(blame_outputs(&profile));
            }
            let check = |(name, bytes): (&str, Vec<u8>)| match name {
                "report.json" if bytes.len() > LARGEST_REPORT => check_absent(&case.join(name)),
                _ => check(&case.join(name), &bytes),
            };
            wanted.into_iter().filter_map(check).collect::<Vec<_>>()
        })
        .collect();
    assert!(wrong.is_empty(), "LOCKPROF_BLESS=1 rewrites goldens\n{}", wrong.join("\n"));
}

fn the_synthetic_case_is_what_its_source_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("flamegraphs/synthetic-mix/profile.json");
    let mut json = serde_json::to_string(&synthetic::profile()).unwrap();
    json.push('\n');
    assert_eq!(check(&path, json.as_bytes()), None);
}

#[test]
fn rendering_twice_gives_the_same_bytes() {
    let profile = synthetic::profile();
    assert!(outputs(&profile) == outputs(&profile));
    assert!(idle_outputs(&profile) == idle_outputs(&profile));
    assert!(blame_outputs(&profile) == blame_outputs(&profile));
}

#[test]
fn every_report_is_valid_by_the_published_schema() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let schema = fs::read_to_string(root.join("docs/report.schema.json")).unwrap();
    let schema: serde_json::Value = serde_json::from_str(&schema).unwrap();
    jsonschema::meta::validate(&schema).expect("the schema is a schema");
    let validator = jsonschema::validator_for(&schema).unwrap();
    let mut profiles: Vec<Profile> = cases().iter().map(|case| load(case)).collect();
    let mut empty = synthetic::profile();
    empty.locks.clear();
    profiles.push(empty);
    for profile in profiles {
        let bytes = rendered(|out| render::json::render(&profile, &Options::default(), out).unwrap());
        let report: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let errors: Vec<String> = validator
            .iter_errors(&report)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{errors:#?}");
    }
}

#[test]
fn every_field_of_a_report_is_in_the_schema() {
    // The schema allows additions, so a forgotten field would pass validation.
    fn unknown(
        schema: &serde_json::Value,
        root: &serde_json::Value,
        value: &serde_json::Value,
        at: &str,
        out: &mut Vec<String>,
    ) {
        let schema = match schema["$ref"].as_str() {
            Some(reference) => {
                root.pointer(reference.trim_start_matches('#')).expect("the reference resolves")
            }
            None => schema,
        };
        if let (Some(options), false) = (schema["anyOf"].as_array(), value.is_null()) {
            return unknown(options.last().unwrap(), root, value, at, out);
        }
        match value {
            serde_json::Value::Object(fields) => {
                for (name, field) in fields {
                    match schema["properties"].get(name) {
                        Some(known) => unknown(known, root, field, &format!("{at}.{name}"), out),
                        None => out.push(format!("{at}.{name}")),
                    }
                }
            }
            serde_json::Value::Array(items) => {
                items.iter().for_each(|item| unknown(&schema["items"], root, item, &format!("{at}[]"), out));
            }
            _ => {}
        }
    }
    let schema =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/report.schema.json")).unwrap();
    let schema: serde_json::Value = serde_json::from_str(&schema).unwrap();
    let mut profile = synthetic::profile();
    profile.locks[0].hold = Some(lockprof::model::HoldStats::default());
    let bytes = rendered(|out| render::json::render(&profile, &Options::default(), out).unwrap());
    let report: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    let mut missing = Vec::new();
    unknown(&schema, &schema, &report, "", &mut missing);
    missing.sort();
    missing.dedup();
    assert!(missing.is_empty(), "not in docs/report.schema.json: {missing:?}");
}
