//! The measured servers: started on their own ports, inspected through `/proc`, ended by their process id.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::Instant;

use crate::Result;
use crate::http::{Connection, Target, request, tls_config};

/// The time limit for the start or stop of a server.
const BOUND: Duration = Duration::from_secs(60);

/// A process that is stopped and waited for when it is dropped.
pub struct Process(pub Child);

/// The certificate of every TLS server in a run.
#[derive(Clone)]
pub struct Identity {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

pub struct Daemon {
    program: PathBuf,
    directory: PathBuf,
    settings: Vec<(String, String)>,
    process: Option<Process>,
    pub hosts: Target,
    pub admin: Target,
}

#[derive(serde::Deserialize)]
struct Listen {
    hosts: SocketAddr,
    admin: SocketAddr,
}

impl Daemon {
    /// A daemon with its state in `directory`. It is not started.
    pub fn new(directory: PathBuf, identity: Option<&Identity>) -> Result<Self> {
        std::fs::create_dir_all(&directory)?;
        let mut settings = vec![
            ("STATE_DIR", directory.join("state").display().to_string()),
            ("LISTEN__HOSTS", "127.0.0.1:0".into()),
            ("LISTEN__ADMIN", "127.0.0.1:0".into()),
            ("LISTEN__CONTROL", directory.join("control.sock").display().to_string()),
            ("LISTEN__HOSTS_TLS", identity.is_some().to_string()),
            ("LIMITS__GLOBAL_PER_MINUTE", "0".into()),
            ("LIMITS__HOST_PER_MINUTE", "0".into()),
            ("AUTH__STORES_PER_HOST_PER_HOUR", "0".into()),
            ("UPSTREAM__RELEASES_URL", String::new()),
            ("RUNNER__ENABLED", "false".into()),
        ];
        if let Some(Identity { certificate, key }) = identity {
            settings.push(("TLS__CERTIFICATE", certificate.display().to_string()));
            settings.push(("TLS__PRIVATE_KEY", key.display().to_string()));
        }
        let settings = settings.into_iter().map(|(name, value)| (format!("CODEX_AUTHD_{name}"), value)).collect();
        let nowhere = Target { address: SocketAddr::from(([127, 0, 0, 1], 0)), tls: None };
        let tls = identity.map(|_| tls_config(None)).transpose()?;
        let hosts = Target { tls, ..nowhere.clone() };
        let program = env!("CARGO_BIN_EXE_codex-authd").into();
        Ok(Self { program, directory, settings, process: None, hosts, admin: nowhere })
    }

    /// The same with another program, of another version.
    pub fn of(self, program: &Path) -> Self {
        Self { program: program.to_owned(), ..self }
    }

    /// Adds a setting (`SECTION__KEY`).
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.settings.push((format!("CODEX_AUTHD_{name}"), value.to_owned()));
        self
    }

    /// The last part of its directory.
    pub fn name(&self) -> std::borrow::Cow<'_, str> {
        self.directory.file_name().unwrap_or_default().to_string_lossy()
    }

    pub fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    pub fn stop(&mut self) {
        self.process = None;
    }

    /// Starts it, and returns the time until its first answer. A running one is stopped first.
    pub async fn start(&mut self) -> Result<Duration> {
        self.process = None;
        let listen = self.directory.join("state/listen.json");
        if listen.exists() {
            std::fs::remove_file(&listen)?;
        }
        let log = File::options().create(true).append(true).open(self.directory.join("log"))?;
        let mut command = self.command(&["serve"]);
        command.stdout(log.try_clone()?).stderr(log);
        let started = Instant::now();
        let mut process = Process(command.spawn()?);
        let bound: Listen = loop {
            // The daemon replaces this file atomically, so it is complete if it can be read.
            if let Ok(text) = std::fs::read(&listen) {
                break serde_json::from_slice(&text)?;
            }
            process.check(started)?;
            pause().await;
        };
        self.hosts.address = bound.hosts;
        self.admin.address = bound.admin;
        answers(&self.hosts).await?;
        let took = started.elapsed();
        self.process = Some(process);
        if self.admin.tls.is_none() {
            let files = self.directory.join("admin");
            // A fleet that was kept has one.
            if !files.join("bench.key").exists() {
                self.run(&["admin-cert", "bench", "--pem", &files.display().to_string()])?;
            }
            self.admin.tls = Some(tls_config(Some((&files.join("bench.crt"), &files.join("bench.key"))))?);
        }
        Ok(took)
    }

    /// Runs a subcommand to its end.
    pub fn run(&self, arguments: &[&str]) -> Result<()> {
        let output = self.command(arguments).output()?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("codex-authd {arguments:?}: {}", String::from_utf8_lossy(&output.stderr)).into())
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().map_or(0, |process| process.0.id())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("CODEX_AUTHD_") {
                command.env_remove(name);
            }
        }
        for name in ["RUST_LOG", "NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY"] {
            command.env_remove(name);
        }
        command.envs(self.settings.iter().map(|(name, value)| (name, value)));
        command.args(arguments).stdin(Stdio::null());
        command
    }
}

pub struct Bare {
    process: Process,
    pub target: Target,
    pub start: Duration,
}

impl Bare {
    /// Starts this program as the bare server.
    pub async fn start(body: &Path, identity: Option<&Identity>) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("bare").arg(body).stdin(Stdio::null()).stdout(Stdio::piped());
        if let Some(Identity { certificate, key }) = identity {
            command.arg(certificate).arg(key);
        }
        let started = Instant::now();
        let mut process = Process(command.spawn()?);
        let stdout = process.0.stdout.take().ok_or("the bare server has no standard output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let address = line.trim().parse().map_err(|_| "the bare server did not print its address")?;
        let target = Target { address, tls: identity.map(|_| tls_config(None)).transpose()? };
        answers(&target).await?;
        Ok(Self { process, target, start: started.elapsed() })
    }

    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }
}

pub struct Nginx {
    process: Process,
    pub target: Target,
}

impl Nginx {
    /// Two workers, nginx's defaults for everything else; answers `length` bytes to every request.
    pub async fn start(program: &Path, directory: &Path, identity: &Identity, length: usize) -> Result<Self> {
        std::fs::create_dir_all(directory)?;
        // Freed at once: nginx cannot choose a port itself, and no other program takes it in between.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let text = configuration(directory, address, identity, length);
        let file = directory.join("nginx.conf");
        std::fs::write(&file, text)?;
        let mut command = Command::new(program);
        command.arg("-p").arg(directory).arg("-e").arg(directory.join("error.log")).arg("-c").arg(&file);
        let started = Instant::now();
        let mut process = Process(command.stdin(Stdio::null()).spawn()?);
        let target = Target { address, tls: Some(tls_config(None)?) };
        while answers(&target).await.is_err() {
            process.check(started)?;
            pause().await;
        }
        Ok(Self { process, target })
    }

    /// The process ids of the master and its workers.
    pub fn pids(&self) -> Result<Vec<u32>> {
        let master = self.process.0.id();
        let children = std::fs::read_to_string(format!("/proc/{master}/task/{master}/children"))?;
        Ok(std::iter::once(master).chain(children.split_whitespace().filter_map(|pid| pid.parse().ok())).collect())
    }
}

fn configuration(directory: &Path, address: SocketAddr, identity: &Identity, length: usize) -> String {
    let directory = directory.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("  {name}_temp_path {directory}/{name};\n"))
        .concat();
    let body = "x".repeat(length);
    format!(
        "daemon off;\nworker_processes 2;\npid {directory}/nginx.pid;\nerror_log {directory}/error.log warn;\n\
         events {{ worker_connections 1024; }}\nhttp {{\n{temporary}  access_log off;\n  server {{\n    listen {address} ssl backlog=1024;\n    \
         ssl_certificate {};\n    ssl_certificate_key {};\n    ssl_protocols TLSv1.3;\n    \
         location / {{ default_type application/json; return 200 '{body}'; }}\n  }}\n}}\n",
        identity.certificate.display(),
        identity.key.display(),
    )
}

impl Process {
    pub fn check(&mut self, started: Instant) -> Result<()> {
        if let Some(status) = self.0.try_wait()? {
            return Err(format!("a server ended with {status} instead of listening").into());
        }
        if started.elapsed() > BOUND {
            return Err("a server does not listen".into());
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let Ok(pid) = i32::try_from(self.0.id()) else { return };
        // If the master is killed, its workers stay. So it gets SIGTERM first.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        let asked = Instant::now();
        while let Ok(None) = self.0.try_wait() {
            if asked.elapsed() > BOUND {
                let _ = self.0.kill();
                let _ = self.0.wait();
                return;
            }
            #[allow(clippy::disallowed_methods)] // Polls a condition, outside of any measurement.
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// User and system CPU time of the processes since their start.
pub fn cpu_time(pids: &[u32]) -> Result<Duration> {
    // USER_HZ, which is 100 in Linux on every architecture that we build for.
    const TICK: Duration = Duration::from_millis(10);
    let mut ticks = 0;
    for pid in pids {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields = text.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
        let both: Vec<u32> =
            fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
        ticks += both.iter().sum::<u32>();
    }
    Ok(TICK * ticks)
}

/// Resident memory in KiB.
pub fn resident_memory(pid: u32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

async fn answers(target: &Target) -> Result<()> {
    let mut connection = Connection::open(target).await?;
    match connection.exchange(&request("GET", "/healthz", None, true, "")).await?.status {
        200 => Ok(()),
        status => Err(format!("/healthz answered {status}").into()),
    }
}

pub async fn pause() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}
