//! Where results go: files opened before the measurement, standard output for the table.

use super::Args;
use super::args::{ByArg, ColorArg};
use crate::doctor::Diagnosis;
use crate::failure::{Exit, Failure};
use crate::kernel::Facts;
use crate::model::Profile;
use crate::render::{self, By, Options, View};
use anyhow::{Context, Result};
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

type Render = fn(&Profile, &Options, &mut dyn Write) -> Result<()>;

/// One output that was asked for.
struct Output {
    path: PathBuf,
    /// `None`: standard output.
    file: Option<File>,
    render: Render,
}

pub struct Outputs {
    outputs: Vec<Output>,
    /// The table goes to standard output unless something else does.
    table: bool,
    options: Options,
}

impl Outputs {
    pub fn open(args: &Args) -> Result<Outputs> {
        let wanted: [(&Option<PathBuf>, Render); 6] = [
            (&args.flamegraph, |profile, options, out| render::flamegraph::render(profile, options, out)),
            (&args.folded, |profile, options, out| Ok(render::folded::render(profile, options, out)?)),
            (&args.blame_flamegraph, |profile, options, out| {
                render::flamegraph::render_blame(profile, options, out)
            }),
            (&args.blame_folded, |profile, options, out| {
                Ok(render::folded::render_blame(profile, options, out)?)
            }),
            (&args.json, |profile, options, out| Ok(render::json::render(profile, options, out)?)),
            (&args.save_profile, |profile, _, out| Ok(serde_json::to_writer(out, profile)?)),
        ];
        let mut outputs = Vec::new();
        for (path, render) in wanted {
            let Some(path) = path else { continue };
            let file = if path.as_os_str() == "-" { None } else { Some(open(path)?) };
            outputs.push(Output { path: path.clone(), file, render });
        }
        let stdout = io::stdout();
        let width = terminal_size::terminal_size_of(&stdout).map(|(width, _)| usize::from(width.0));
        let options = Options {
            view: if args.idle { View::Idle } else { View::Contention },
            by: match args.by {
                ByArg::Lock => By::Lock,
                ByArg::Holder => By::Holder,
            },
            width,
            color: match args.color {
                ColorArg::Always => true,
                ColorArg::Never => false,
                ColorArg::Auto => {
                    stdout.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
                }
            },
            max_rows: args.entries,
            ..Options::default()
        };
        let table = outputs.iter().all(|output| output.file.is_some());
        Ok(Outputs { outputs, table, options })
    }

    /// Writes them all; one that fails does not keep the others from being written.
    pub fn write(self, profile: &Profile) -> Result<()> {
        let mut first_failure = None;
        for output in self.outputs {
            let name = output.path.display().to_string();
            let written = match output.file {
                Some(file) => to_file(file, &output.render, profile, &self.options),
                None => to_stdout(&output.render, profile, &self.options),
            };
            if let Err(err) = written.with_context(|| format!("Failed to write {name}")) {
                first_failure.get_or_insert(err);
            }
        }
        if self.table {
            let render: Render = |profile, options, out| {
                render::table::render(profile, options, out)?;
                if options.by == By::Lock {
                    writeln!(out)?;
                    render::histogram::render(profile, options, out)?;
                }
                Ok(())
            };
            to_stdout(&render, profile, &self.options).context("Failed to write to standard output")?;
        }
        first_failure.map_or(Ok(()), Err)
    }
}

/// `doctor`'s: words on standard output, or JSON where `--json` says.
pub struct DoctorOutputs {
    json: Option<(PathBuf, Option<File>)>,
}

impl DoctorOutputs {
    pub fn open(args: &Args) -> Result<DoctorOutputs> {
        let json = match &args.json {
            Some(path) if path.as_os_str() == "-" => Some((path.clone(), None)),
            Some(path) => Some((path.clone(), Some(open(path)?))),
            None => None,
        };
        Ok(DoctorOutputs { json })
    }

    pub fn write(self, facts: &Facts, diagnosis: &Diagnosis) -> Result<()> {
        let mut out = BufWriter::new(io::stdout().lock());
        let words = !matches!(self.json, Some((_, None)));
        if let Some((path, file)) = self.json {
            let mut text = serde_json::to_string_pretty(&diagnosis.json)?;
            text.push('\n');
            match file {
                Some(mut file) => {
                    let _ = file.set_len(0);
                    file.write_all(text.as_bytes())
                }
                None => out.write_all(text.as_bytes()),
            }
            .with_context(|| format!("Failed to write {}", path.display()))?;
        }
        if words {
            diagnosis.write(facts, &mut out).context("Failed to write to standard output")?;
        }
        out.flush()?;
        Ok(())
    }
}

fn to_file(file: File, render: &Render, profile: &Profile, options: &Options) -> Result<()> {
    // Opened without truncation, so that a failed run leaves an older file as it was. What cannot
    // be truncated (/dev/null, a pipe) needs no truncation.
    let _ = file.set_len(0);
    let mut out = BufWriter::new(file);
    render(profile, options, &mut out)?;
    out.flush()?;
    Ok(())
}

fn to_stdout(render: &Render, profile: &Profile, options: &Options) -> Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    render(profile, options, &mut out)?;
    out.flush()?;
    Ok(())
}

fn open(path: &Path) -> Result<File> {
    OpenOptions::new().write(true).create(true).truncate(false).open(path).map_err(|err| {
        Failure::new(
            Exit::Runtime,
            format!("Failed to open {} for writing: {err}", path.display()),
            "give a file in a directory you may write to, or - for standard output",
        )
        .into()
    })
}
