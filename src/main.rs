//! Parse, run, exit: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(lockprof::cli::main())
}
