//! Shows the progress of long work: a bar on a terminal, nothing otherwise.

use std::io::IsTerminal as _;

use serde::de::DeserializeOwned;
use tokio::io::AsyncBufReadExt as _;
use tokio::sync::mpsc;

use super::client::Lines;
use super::{CliError, print};
use crate::api::Line;
use crate::service::transfer::{Progress, TransferStep};

const BAR_WIDTH: u64 = 40;

/// Writes to standard error, to keep the answer on standard output clean.
pub struct Bar {
    is_shown: bool,
    drawn: Option<String>,
}

impl Bar {
    pub fn new() -> Self {
        Self { is_shown: std::io::stderr().is_terminal(), drawn: None }
    }

    pub fn show(&mut self, what: &str, rows: u64, of: u64) {
        if !self.is_shown {
            return;
        }
        let full = (rows * BAR_WIDTH / of.max(1)).min(BAR_WIDTH);
        let [done, left] = [("#", full), (".", BAR_WIDTH - full)].map(|(sign, count)| sign.repeat(count as usize));
        let line = format!("\r{what:<10} [{done}{left}] {rows} rows");
        if self.drawn.as_ref() != Some(&line) {
            print::note(&line);
            self.drawn = Some(line);
        }
    }

    pub fn progress(&mut self, Progress { step, rows, of }: Progress) {
        let what = match step {
            TransferStep::Checking => "checking",
            TransferStep::Copying => "copying",
            TransferStep::Comparing => "comparing",
        };
        self.show(what, rows, of);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if self.drawn.is_some() {
            print::note("\n");
        }
    }
}

/// Returns the next line unchanged, or `None` at the end.
pub async fn next_line(lines: &mut Lines) -> Result<Option<String>, CliError> {
    let mut line = String::new();
    let cut = |error: std::io::Error| CliError::Refused(format!("the daemon's answer was cut off: {error}"));
    let read = lines.read_line(&mut line).await.map_err(cut)?;
    Ok((read > 0).then(|| line.trim_end_matches('\n').to_owned()))
}

pub fn read_line<T: DeserializeOwned>(line: &str) -> Result<Line<T>, CliError> {
    serde_json::from_str(line)
        .map_err(|error| CliError::Refused(format!("the daemon's answer cannot be read: {error}")))
}

/// Shows the progress of work in this process, until it ends.
pub async fn show(mut progress: mpsc::Receiver<Progress>) {
    let mut bar = Bar::new();
    while let Some(now) = progress.recv().await {
        bar.progress(now);
    }
}

/// Shows the progress of work in the daemon, and returns its result.
pub async fn follow<T: DeserializeOwned>(mut lines: Lines) -> Result<T, CliError> {
    let mut bar = Bar::new();
    while let Some(line) = next_line(&mut lines).await? {
        match read_line(&line)? {
            Line::Done(done) => return Ok(done),
            Line::Error(error) => return Err(CliError::Refused(error.message)),
            Line::Progress(progress) => bar.progress(progress),
            Line::About(_) | Line::Manifest(_) => {}
        }
    }
    Err(CliError::Refused("the daemon ended before the work was done: check its log".into()))
}
