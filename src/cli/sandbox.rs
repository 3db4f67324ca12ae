//! `codex-authd sandbox-exec`: the daemon starts it to run Codex in a sandbox. It is not for people, so --help does not
//! list it. With `--plan FILE` it tries a sandbox without a daemon.
//!
//! It is dispatched before anything else in the process: no thread, no configuration, no TLS.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use crate::runner::sandbox::{self, Ending, Event, Plan, Sandbox};

use super::{CliError, print};

/// Runs `sandbox-exec` if it is the requested command.
pub fn dispatch() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != "sandbox-exec" {
        return None;
    }
    let rest: Vec<OsString> = arguments.collect();
    Some(match rest.as_slice() {
        [flag, file] if flag == "--plan" => match run(Path::new(file)) {
            Ok(code) => code,
            Err(error) => {
                print::note(&format!("codex-authd: {error}\n"));
                ExitCode::FAILURE
            }
        },
        [] => sandbox::launch(),
        _ => {
            print::note("codex-authd: sandbox-exec accepts only --plan FILE\n");
            ExitCode::from(2)
        }
    })
}

/// The program inherits this process's outputs, and its exit code becomes this process's. Nothing listens on the
/// proxy's port.
fn run(file: &Path) -> Result<ExitCode, CliError> {
    let refused = |e: &dyn std::fmt::Display| CliError::Refused(e.to_string());
    let text = std::fs::read(file).map_err(|cause| CliError::Read { path: file.into(), cause })?;
    let plan: Plan = serde_json::from_slice(&text).map_err(|e| refused(&format!("{}: {e}", file.display())))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CliError::Runtime)?;
    let ending = runtime.block_on(async {
        let mut sandbox = Sandbox::start_attached(Path::new("/proc/self/exe"), &plan).await?;
        // Connections to the proxy are refused.
        drop(sandbox.listener());
        sandbox.go()?;
        while !matches!(sandbox.next().await?, Event::Ended(_)) {}
        sandbox.end().await
    });
    match ending.map_err(|e| refused(&e))?.1 {
        Ending::Exited(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(1))),
        Ending::Killed(signal) => Err(CliError::Refused(format!("the program was killed by signal {signal}"))),
        Ending::OutOfTime => Err(CliError::Refused("the program was killed because its time was up".to_owned())),
    }
}
