//! The command line without privileges: usage errors, help, exit statuses.

use std::process::{Command, Output};

fn lockprof(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lockprof")).args(args).output().expect("lockprof runs")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn usage_errors_exit_2_with_one_line_and_a_hint() {
    let cases: [(&[&str], &str); 8] = [
        (&[], "Nothing to trace"),
        (&["10"], "Nothing to trace"),
        (&["-p", "abc"], "'abc' is no process id"),
        (&["-p", "0"], "'0' is no process id"),
        (&["-a", "-p", "1"], "exclude each other"),
        (&["-a", "soon"], "'soon' is neither a duration nor 'doctor'"),
        (&["-a", "0"], "'0' is neither a duration nor 'doctor'"),
        (&["-a", "--json", "-", "--folded", "-"], "Only one output"),
    ];
    for (args, expected) in cases {
        let output = lockprof(args);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(expected), "{args:?}: {said}");
        assert_eq!(said.lines().count(), 2, "{args:?}: {said}");
        assert!(said.lines().nth(1).is_some_and(|line| line.starts_with("hint: ")), "{args:?}: {said}");
        assert!(output.stdout.is_empty(), "results only on standard output");
    }
}

#[test]
fn unknown_options_and_values_exit_2() {
    for args in [
        &["--frobnicate"][..],
        &["-a", "--backend", "magic"],
        &["-a", "-M", "0"],
        &["-a", "-E", "x"],
        &["-a", "--by", "colour"],
        &["-a", "--by", "holder", "--idle"],
    ] {
        let output = lockprof(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).starts_with("error:"), "{}", stderr(&output));
    }
}

#[test]
fn help_names_the_forms_the_outputs_and_the_exit_statuses() {
    let output = lockprof(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8_lossy(&output.stdout);
    for expected in ["-p PID", "COMMAND", "doctor", "--flamegraph", "--json", "--by", "--idle", "77"] {
        assert!(text.contains(expected), "no {expected} in:\n{text}");
    }
}

#[test]
fn an_output_in_a_missing_directory_is_an_error_before_anything_runs() {
    let output = lockprof(&["--folded", "/no/such/dir/x", "-a", "1"]);
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    assert!(stderr(&output).contains("/no/such/dir/x"), "{}", stderr(&output));
}

/// An unprivileged user gets a way out and 77; the file that was asked for stays as it was.
#[test]
fn without_privileges_it_says_so_and_exits_77() {
    // SAFETY: no preconditions.
    let root = unsafe { libc::geteuid() } == 0;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let report = directory.path().join("report.json");
    std::fs::write(&report, "precious").expect("writable");
    let mut command = if root {
        // Drops every capability: root in name only, as in most containers.
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-all", "--inh-caps=-all", env!("CARGO_BIN_EXE_lockprof")]);
        command
    } else {
        Command::new(env!("CARGO_BIN_EXE_lockprof"))
    };
    let output = command.args(["-a", "1", "--json"]).arg(&report).output().expect("lockprof runs");
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(77), "{said}");
    assert!(said.contains("Cannot trace") && said.contains("hint:"), "{said}");
    assert_eq!(std::fs::read_to_string(&report).expect("readable"), "precious");
}
