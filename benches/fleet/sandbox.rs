//! The whole life of a sandbox: it is built, runs a program that does nothing, and ends. Compared with bubblewrap with
//! nearly the same isolation (every namespace, a root of its own, no capabilities), or with the program alone.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use codex_authd::runner::sandbox::{Ending, Event, Limits, Plan, Sandbox};
use tokio::time::Instant;

use crate::report::{Cell, Row};
use crate::{Bench, Result};

const TIMES: usize = 100;

pub async fn rows(bench: &Bench) -> Result<Vec<Row>> {
    let Some(program) = nothing(bench.directory.path())? else {
        eprintln!("bench: there is no cc that links statically: skipping sandboxes");
        return Ok(Vec::new());
    };
    let bwrap = Command::new("bwrap").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let has_bwrap = bwrap.is_ok_and(|status| status.success());
    let beside = if has_bwrap { "bwrap" } else { "the program alone" };
    if !has_bwrap {
        eprintln!("bench: bwrap is not installed: comparing sandboxes with the program alone");
    }
    let plan = plan(&program);
    let mut row = Row::new("a sandbox built, entered and gone".into(), beside);
    for _ in 0..bench.rounds {
        let mut times = Vec::new();
        for _ in 0..TIMES {
            let begun = Instant::now();
            ours(&plan).await?;
            times.push(begun.elapsed());
        }
        row.ours.push(Cell::times(&mut times));
        let mut times = Vec::new();
        for _ in 0..TIMES {
            let mut command = if has_bwrap { bubblewrap(&program) } else { Command::new(&program) };
            command.stdin(Stdio::null());
            let begun = Instant::now();
            let status = tokio::process::Command::from(command).status().await?;
            times.push(begun.elapsed());
            if !status.success() {
                return Err(format!("{beside} ended with {status}").into());
            }
        }
        row.baseline.push(Cell::times(&mut times));
    }
    Ok(vec![row])
}

async fn ours(plan: &Plan) -> Result<()> {
    let mut sandbox = Sandbox::start(Path::new(env!("CARGO_BIN_EXE_codex-authd")), plan).await?;
    sandbox.go()?;
    loop {
        match sandbox.next().await? {
            Event::Watched(_) => {}
            Event::Ended(Ending::Exited(0)) => break,
            Event::Ended(ending) => return Err(format!("the program ended with {ending:?}").into()),
        }
    }
    sandbox.end().await?;
    Ok(())
}

fn plan(program: &Path) -> Plan {
    Plan {
        program: program.into(),
        arguments: Vec::new(),
        environment: Vec::new(),
        ca_bundle: None,
        home: Vec::new(),
        watched: ".codex/auth.json".into(),
        limits: Limits::default(),
        cgroup: None,
        only_build: false,
    }
}

fn bubblewrap(program: &Path) -> Command {
    let mut command = Command::new("bwrap");
    command.args(["--unshare-all", "--unshare-user", "--die-with-parent", "--clearenv", "--cap-drop", "ALL"]);
    command.arg("--ro-bind").arg(program).arg("/bin/codex");
    command.args(["--dev", "/dev", "--tmpfs", "/home/probe", "--tmpfs", "/tmp", "--new-session"]);
    command.args(["--remount-ro", "/", "/bin/codex"]);
    command
}

/// A program that needs nothing and does nothing; `None` if it cannot be compiled.
fn nothing(directory: &Path) -> Result<Option<PathBuf>> {
    let (source, program) = (directory.join("nothing.c"), directory.join("nothing"));
    std::fs::write(&source, "int main(void) { return 0; }\n")?;
    let made = Command::new("cc").arg("-static").arg("-o").arg(&program).arg(&source).status();
    Ok(made.is_ok_and(|status| status.success()).then_some(program))
}
