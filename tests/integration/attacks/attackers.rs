//! The attackers: bounded in number and in time, all from 127.0.0.2.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, Response};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::fleet::{LOGIN, rest};
use crate::support::daemon::{Daemon, auth_json, install_provider};
use crate::support::people::{PASSWORD, add_user, ask, register};

const FROM: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
/// Silent connections per second.
const SILENT_PER_SECOND: u32 = 115;
const DOCS: usize = 120;
const BODIES: usize = 300;
const CONNECTIONS: usize = 1500;
/// Tasks that each make one call after another.
const CALLERS: usize = 16;
/// The time limit for one step of an attacker.
const STEP: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Attack {
    Handshakes,
    Docs,
    Bodies,
    Descriptors,
    Strength,
    Audit,
    Stores,
}

impl Attack {
    pub const ALL: [Self; 7] =
        [Self::Handshakes, Self::Docs, Self::Bodies, Self::Descriptors, Self::Strength, Self::Audit, Self::Stores];

    pub fn name(self) -> &'static str {
        match self {
            Self::Handshakes => "handshake slots",
            Self::Docs => "/docs memory",
            Self::Bodies => "body memory",
            Self::Descriptors => "descriptors",
            Self::Strength => "zxcvbn",
            Self::Audit => "audit flood",
            Self::Stores => "store flood",
        }
    }

    pub fn settings(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Audit => &[("ADMIN__ACCESS", "login")],
            _ => &[],
        }
    }
}

/// An attacker with its prepared data.
pub struct Prepared {
    attack: Attack,
    client: Client,
    /// The key of a host, or the token of a session.
    credential: String,
}

impl Prepared {
    pub async fn new(attack: Attack, daemon: &Daemon) -> Self {
        let client = daemon.client_from(FROM);
        let credential = match attack {
            Attack::Strength | Attack::Audit => {
                add_user(daemon, "mallory@fleet.test", "member").await;
                let body = json!({ "email": "mallory@fleet.test", "password": PASSWORD });
                let answer = client.post(daemon.hosts_url("/auth/session")).json(&body).send().await.unwrap();
                let body: Value = answer.json().await.unwrap();
                body["access_token"].as_str().unwrap().to_owned()
            }
            Attack::Stores => register(daemon, "mallory.fleet.test").await.api_key,
            _ => String::new(),
        };
        Self { attack, client, credential }
    }

    /// The result, as text.
    pub async fn attack(&self, daemon: &Daemon, time: Duration) -> String {
        let end = Instant::now() + time;
        let hosts = daemon.listen.hosts;
        match self.attack {
            Attack::Handshakes => silent(hosts, end).await,
            Attack::Docs => docs(daemon, end).await,
            Attack::Bodies => bodies(daemon, end).await,
            Attack::Descriptors => connections(daemon, end).await,
            Attack::Strength => self.passwords(daemon, end).await,
            Attack::Audit => self.refusals(daemon, end).await,
            Attack::Stores => self.stores(daemon, end).await,
        }
    }

    async fn passwords(&self, daemon: &Daemon, end: Instant) -> String {
        let body = Bytes::from(json!({ "current": PASSWORD, "new": "ab".repeat(512) }).to_string());
        let url = daemon.hosts_url("/auth/me/password");
        let answered = self.flood(end, &url, || body.clone()).await;
        format!("{answered} passwords of 1024 bytes answered")
    }

    async fn refusals(&self, daemon: &Daemon, end: Instant) -> String {
        let newest = async || ask(daemon, "/admin/audit?limit=1").await["entries"][0]["number"].as_u64().unwrap();
        let (entries, bytes) = (newest().await, size(&daemon.state_dir()));
        let (url, body) = (daemon.admin_url("/admin/hosts/register"), Bytes::from_static(br#"{"fqdn":"x.test"}"#));
        let answered = self.flood(end, &url, || body.clone()).await;
        let (entries, bytes) = (newest().await - entries, size(&daemon.state_dir()).saturating_sub(bytes));
        format!("{answered} refusals: {entries} audit entries, {} KiB on disk", bytes >> 10)
    }

    async fn stores(&self, daemon: &Daemon, end: Instant) -> String {
        let bytes = size(&daemon.state_dir());
        let (number, url) = (AtomicU64::new(0), daemon.hosts_url("/auth"));
        let body = |n: u64, padding: usize| {
            let mut login = auth_json(&LOGIN.replace("27:43.5Z", &format!("28:{:02}.{n:06}Z", n / 900)), n);
            login["padding"] = "x".repeat(padding).into();
            Bytes::from(json!({ "command": "store", "auth": login }).to_string())
        };
        // Made once: the attackers share the processors with the fleet and the daemon.
        let large = body(0, 1_000_000);
        let answered = self
            .flood(end, &url, || match number.fetch_add(1, Ordering::SeqCst) {
                // Small ones as well, which are stored whatever the limit is.
                n if n % 2 == 1 => body(n, 10),
                _ => large.clone(),
            })
            .await;
        let bytes = size(&daemon.state_dir()).saturating_sub(bytes);
        format!("{answered} stores answered: {} MiB on disk", bytes >> 20)
    }

    /// The same call by several tasks at once; counts the answers by status.
    async fn flood(&self, end: Instant, url: &str, body: impl Fn() -> Bytes) -> String {
        let callers = (0..CALLERS).map(async |_| {
            let mut answered = std::collections::BTreeMap::<u16, u64>::new();
            while Instant::now() < end {
                let call = self.client.post(url).bearer_auth(&self.credential).header(CONTENT_TYPE, "application/json");
                let sent = call.body(body()).send();
                let left = end.saturating_duration_since(Instant::now());
                let status = match timeout(left, sent).await {
                    Ok(Ok(answer)) => answer.status().as_u16(),
                    // Refused without an answer, or too slow.
                    _ => 0,
                };
                *answered.entry(status).or_default() += 1;
                if status == 0 || status == 429 {
                    rest(Duration::from_millis(20)).await;
                }
            }
            answered
        });
        let mut all = std::collections::BTreeMap::<u16, u64>::new();
        for (status, count) in join_all(callers).await.into_iter().flatten() {
            *all.entry(status).or_default() += count;
        }
        let words: Vec<String> = all.iter().map(|(status, count)| format!("{count}×{status}")).collect();
        words.join(" ")
    }
}

/// As many connections as this rate opens in ten seconds, and then more at that rate.
async fn silent(to: SocketAddr, end: Instant) -> String {
    let silence = async |_| timeout(STEP, connect(to)).await.ok()?.ok();
    let mut held = in_turns(usize::try_from(SILENT_PER_SECOND * 10).unwrap(), silence).await;
    let (begun, first) = (Instant::now(), held.len());
    while Instant::now() < end {
        if begun.elapsed() * SILENT_PER_SECOND < Duration::from_secs(1) * u32::try_from(held.len() - first).unwrap() {
            rest(Duration::from_millis(5)).await;
            continue;
        }
        held.extend(silence(0).await);
    }
    format!("{} silent connections", held.len())
}

async fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(FROM, 0))?;
    socket.connect(to).await
}

/// Answers that the client never reads, on two HTTP/2 connections.
async fn docs(daemon: &Daemon, end: Instant) -> String {
    let clients: Vec<Client> = (0..2)
        .map(|_| {
            let builder = daemon.client_builder().local_address(FROM);
            builder.http2_initial_stream_window_size(65_535).build().unwrap()
        })
        .collect();
    let asked = (0..DOCS).map(|n| timeout(STEP, clients[n % 2].get(daemon.hosts_url("/docs")).send()));
    let held: Vec<Response> = join_all(asked).await.into_iter().filter_map(|answer| answer.ok()?.ok()).collect();
    rest(end.saturating_duration_since(Instant::now())).await;
    let good = held.iter().filter(|answer| answer.status() == 200).count();
    format!("{good} answers that are not read")
}

/// Bodies of a megabyte that never end, with a wrong key or for a sign-in.
async fn bodies(daemon: &Daemon, end: Instant) -> String {
    let sent = AtomicU64::new(0);
    let tls = connector(daemon);
    let held = in_turns(BODIES, async |n| {
        let mut stream = handshake(&tls, daemon.listen.hosts).await?;
        let path = if n.is_multiple_of(2) { "/auth" } else { "/auth/session" };
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: wrong\r\nContent-Type: application/json\r\n\
             Content-Length: 1000000\r\n\r\n"
        );
        let _ = timeout(STEP, async {
            stream.write_all(head.as_bytes()).await?;
            for _ in 0..90 {
                stream.write_all(&[b' '; 10_000]).await?;
                sent.fetch_add(10_000, Ordering::Relaxed);
            }
            stream.flush().await
        })
        .await;
        Some(stream)
    })
    .await;
    rest(end.saturating_duration_since(Instant::now())).await;
    format!("{} connections, {} MB taken of their bodies", held.len(), sent.load(Ordering::Relaxed) / 1_000_000)
}

/// As many connections as possible, idle after their handshake.
async fn connections(daemon: &Daemon, end: Instant) -> String {
    let tls = connector(daemon);
    let held = in_turns(CONNECTIONS, async |_| {
        if Instant::now() >= end {
            return None;
        }
        handshake(&tls, daemon.listen.hosts).await
    })
    .await;
    rest(end.saturating_duration_since(Instant::now())).await;
    format!("{} connections open", held.len())
}

/// Twenty steps at once.
async fn in_turns<T>(count: usize, step: impl AsyncFn(usize) -> Option<T>) -> Vec<T> {
    let next = AtomicU64::new(0);
    let takers = (0..20).map(async |_| {
        let mut made = Vec::new();
        loop {
            let n = usize::try_from(next.fetch_add(1, Ordering::SeqCst)).unwrap();
            if n >= count {
                return made;
            }
            made.extend(step(n).await);
        }
    });
    join_all(takers).await.into_iter().flatten().collect()
}

fn connector(daemon: &Daemon) -> TlsConnector {
    install_provider();
    let mut roots = RootCertStore::empty();
    let pem = std::fs::read(daemon.state_dir().join("pki/server-ca.crt")).unwrap();
    roots.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
    TlsConnector::from(Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()))
}

async fn handshake(tls: &TlsConnector, to: SocketAddr) -> Option<TlsStream<TcpStream>> {
    let name = ServerName::IpAddress(to.ip().into());
    let connected = async { tls.connect(name, connect(to).await?).await };
    timeout(STEP, connected).await.ok()?.ok()
}

/// The total size of the files below a directory, in bytes.
fn size(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    sizes.sum()
}
