//! What `cdx` costs before Codex starts, if there is nothing new: the native program and the bash script, each compared
//! with Codex alone, a static program that does nothing. Also the size of the native program.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::time::Instant;

use crate::calls::Fleet;
use crate::http::{Connection, Target, request, tls_config};
use crate::process::Daemon;
use crate::report::{Cell, Row};
use crate::{Bench, Result};

const TIMES: usize = 100;

pub async fn rows(bench: &Bench) -> Result<Vec<Row>> {
    let native = std::env::var_os("BENCH_CDX").map(PathBuf::from);
    let Some(native) = native.filter(|program| program.exists()) else {
        eprintln!("bench: BENCH_CDX is not the native cdx (make cdx): skipping cdx");
        return Ok(Vec::new());
    };
    let (daemon, fleet) = bench.fleet_of(2, daemon(bench)?).await?;
    let home = bench.directory.path().join("home");
    let Some(codex) = stub(&home)? else {
        eprintln!("bench: there is no cc that links statically: skipping cdx");
        return Ok(Vec::new());
    };
    let programs = [native_host(&home, &native, &daemon, &fleet)?, bash_host(&home, &daemon, &fleet).await?];
    let names = ["native", "bash"];
    let mut rows = names.map(|name| Row::new(format!("cdx, {name}, nothing new, TLS 1.3"), "codex alone"));
    for program in &programs {
        // The first run fetches the login and finds the version of Codex.
        run(program, &home)?;
    }
    for _ in 0..bench.rounds {
        for (row, program) in rows.iter_mut().zip(&programs) {
            let before = answered(&daemon.admin).await?;
            let mut times = Vec::new();
            for _ in 0..TIMES {
                times.push(run(program, &home)?);
            }
            let requests = answered(&daemon.admin).await? - before;
            if requests != TIMES as u64 {
                return Err(format!("{}: {TIMES} starts made {requests} requests", row.what).into());
            }
            row.ours.push(Cell::times(&mut times));
            let mut alone = (0..TIMES).map(|_| run(&codex, &home)).collect::<Result<Vec<_>>>()?;
            row.baseline.push(Cell::times(&mut alone));
        }
    }
    let mut size = Row::new("size of the native cdx".into(), "the bash cdx");
    for (cells, program) in [(&mut size.ours, &native), (&mut size.baseline, &programs[1])] {
        cells.push(Cell::mebibytes(std::fs::metadata(program)?.len() as f64 / 1024.0));
    }
    Ok(rows.into_iter().chain([size]).collect())
}

/// With certificates of its own authority, which the scripts of its hosts trust.
fn daemon(bench: &Bench) -> Result<Daemon> {
    // Freed at once: the scripts hold the address, so it must be known before the daemon starts.
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut daemon = Daemon::new(bench.directory.path().join("wrapper"), None)?
        .with("LISTEN__HOSTS", &address.to_string())
        .with("LISTEN__HOSTS_TLS", "true")
        .with("PUBLIC_BASE_URL", &format!("https://{address}"));
    daemon.hosts.tls = Some(tls_config(None)?);
    Ok(daemon)
}

/// A codex that does nothing and has a version; `None` if it cannot be compiled.
fn stub(home: &Path) -> Result<Option<PathBuf>> {
    std::fs::create_dir_all(home.join("bin"))?;
    let (source, program) = (home.join("codex.c"), home.join("bin/codex"));
    let text = "#include <stdio.h>\nint main(int count, char **words) {\n  \
                if (count > 1 && words[1][0] == '-') puts(\"codex-cli 0.169.0\");\n  return 0;\n}\n";
    std::fs::write(&source, text)?;
    let made = Command::new("cc").arg("-static").arg("-o").arg(&program).arg(&source).status();
    Ok(made.is_ok_and(|status| status.success()).then_some(program))
}

fn native_host(home: &Path, native: &Path, daemon: &Daemon, fleet: &Fleet) -> Result<PathBuf> {
    let (program, configuration) = (home.join("native/cdx"), home.join(".config/cdx"));
    std::fs::create_dir_all(home.join("native"))?;
    std::fs::create_dir_all(&configuration)?;
    std::fs::copy(native, &program)?;
    let authority = std::fs::read_to_string(daemon.state().join("pki/server-ca.crt"))?;
    let values = [
        ("base_url", format!("https://{}", daemon.hosts.address)),
        ("api_key", fleet.key(0).to_owned()),
        ("ca_pem", authority),
    ];
    let lines = values.map(|(name, value)| format!("{name} = {value:?}\n"));
    let file = configuration.join("host.toml");
    std::fs::write(&file, lines.concat())?;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600))?;
    Ok(program)
}

/// The script as the daemon bakes it.
async fn bash_host(home: &Path, daemon: &Daemon, fleet: &Fleet) -> Result<PathBuf> {
    let program = home.join("bash/cdx");
    std::fs::create_dir_all(home.join("bash"))?;
    let mut connection = Connection::open(&daemon.hosts).await?;
    let answer = connection.exchange(&request("GET", "/wrapper/download", Some(fleet.key(1)), true, "")).await?;
    std::fs::write(&program, answer.body)?;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700))?;
    Ok(program)
}

/// Runs a program in the host's home, and returns how long it took.
fn run(program: &Path, home: &Path) -> Result<Duration> {
    let mut command = Command::new(program);
    let path = format!("{}:/usr/bin:/bin", home.join("bin").display());
    command.env_clear().env("HOME", home).env("PATH", path).current_dir(home).args(["exec", "x"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let begun = Instant::now();
    let output = command.output()?;
    let took = begun.elapsed();
    match output.status.success() {
        true => Ok(took),
        false => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(format!("{} ended with {}: {said}", program.display(), output.status).into())
        }
    }
}

/// How many requests of hosts the daemon has answered.
async fn answered(admin: &Target) -> Result<u64> {
    let mut connection = Connection::open(admin).await?;
    let answer = connection.exchange(&request("GET", "/metrics", None, true, "")).await?;
    let text = String::from_utf8_lossy(answer.body);
    let of_hosts = text.lines().filter(|line| {
        line.starts_with("codex_authd_requests_total")
            && line.contains("listener=\"hosts\"")
            && !line.contains("getHealth")
    });
    let counts = of_hosts.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    Ok(counts.sum::<f64>() as u64)
}
