//! Downloads with a progress line on a terminal.

use std::fs::OpenOptions;
use std::io::{IsTerminal as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use aws_lc_rs::digest;
use codex_authd_client::{Client, ClientInfo as _};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(600);
const MAX_RELEASE_BYTES: u64 = 2 << 30;
/// How much has to come before the line is written again.
const STEP: u64 = 256 << 10;

/// The line; it goes when the download ends.
pub struct Progress {
    what: &'static str,
    total: Option<u64>,
    shown: u64,
    is_visible: bool,
}

impl Progress {
    pub fn new(what: &'static str, total: Option<u64>) -> Self {
        let quiet = std::env::var_os("CDX_QUIET").is_some_and(|value| value == "1");
        Self { what, total, shown: 0, is_visible: !quiet && std::io::stderr().is_terminal() }
    }

    pub fn report(&mut self, bytes: u64) {
        if self.is_visible && bytes >= self.shown + STEP {
            self.shown = bytes;
            let _ = write!(std::io::stderr().lock(), "\r\x1b[Kcdx: {}", line(self.what, bytes, self.total));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown > 0 {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
        }
    }
}

fn line(what: &str, bytes: u64, total: Option<u64>) -> String {
    const WIDTH: u64 = 30;
    let megabytes = |bytes: u64| format!("{}.{}", bytes / 1_000_000, bytes % 1_000_000 / 100_000);
    match total.filter(|total| *total >= bytes && *total > 0) {
        Some(total) => {
            let filled = usize::try_from(bytes * WIDTH / total).unwrap_or_default();
            let bar = format!("{:<1$}", "#".repeat(filled), 30);
            format!("{what} [{bar}] {} of {} MB", megabytes(bytes), megabytes(total))
        }
        None => format!("{what} {} MB", megabytes(bytes)),
    }
}

/// Fetches a file from the operator's URL; returns its SHA-256 in hexadecimal digits.
pub async fn fetch(url: &str, file: &Path) -> Result<String, String> {
    let client = Client::connect(url).timeouts(CONNECT_TIMEOUT, DOWNLOAD_TIMEOUT).follow_redirects().build();
    let client = client.map_err(|error| error.to_string())?;
    let plain = |error: reqwest::Error| error.without_url().to_string();
    let mut response = client.client().get(url).send().await.map_err(plain)?.error_for_status().map_err(plain)?;
    let mut opened = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .map_err(|error| format!("cannot write the download: {error}"))?;
    let mut progress = Progress::new("codex", response.content_length());
    let mut context = digest::Context::new(&digest::SHA256);
    let mut bytes = 0;
    while let Some(chunk) = response.chunk().await.map_err(plain)? {
        bytes += chunk.len() as u64;
        if bytes > MAX_RELEASE_BYTES {
            return Err("it is longer than 2 GiB".to_owned());
        }
        context.update(&chunk);
        opened.write_all(&chunk).map_err(|error| format!("cannot write the download: {error}"))?;
        progress.report(bytes);
    }
    Ok(context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_shows_how_far_it_is() {
        assert_eq!(
            line("codex", 50_000_000, Some(100_000_000)),
            format!("codex [{}{}] 50.0 of 100.0 MB", "#".repeat(15), " ".repeat(15))
        );
        assert_eq!(line("codex", 1_250_000, None), "codex 1.2 MB");
        assert_eq!(line("codex", 2, Some(1)), "codex 0.0 MB");
    }
}
