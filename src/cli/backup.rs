//! `codex-authd backup DIR`: `DIR/records.jsonl`, one row a line, and `DIR/manifest.json`.
//!
//! The manifest is written last, as a whole, after the rows are on the disk: a crash before leaves a directory without
//! one, which no restore takes.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use clap::Args;
use poem::Body;
use poem::http::Method;
use serde_json::json;

use super::CliError;
use super::client::Client;
use super::print;
use super::progress::{Bar, next_line, read_line};
use crate::api::Line;
use crate::config::Config;
use crate::records::copy::{Row, Tally};
use crate::service::moving::Manifest;

pub const ROWS: &str = "records.jsonl";
pub const MANIFEST: &str = "manifest.json";

#[derive(Args)]
pub struct Arguments {
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

pub async fn run(arguments: &Arguments, client: &Client, config: &Config, json: bool) -> Result<(), CliError> {
    let directory = &arguments.directory;
    let failed = |cause| CliError::Write { path: directory.clone(), cause };
    let made = !directory.exists();
    if made {
        DirBuilder::new().mode(0o700).create(directory).map_err(failed)?;
    } else if std::fs::read_dir(directory).map_err(failed)?.next().is_some() {
        return Err(CliError::Refused(format!(
            "{} is not empty: name a directory for this backup alone",
            directory.display()
        )));
    }
    let manifest = match copy(directory, client).await {
        Ok(manifest) => manifest,
        Err(error) => {
            // Half a backup is none.
            for name in [ROWS, MANIFEST, "manifest.json.part"] {
                let _ = std::fs::remove_file(directory.join(name));
            }
            if made {
                let _ = std::fs::remove_dir(directory);
            }
            return Err(error);
        }
    };
    let key = master_key(config);
    let hosts = manifest.tables.get(&crate::records::copy::Table::Hosts).map(|count| count.rows).unwrap_or_default();
    let sentence = format!(
        "{} rows ({hosts} hosts, removed ones included) are in {}.\n\
         What is secret in them is sealed under the master key, which is not there: keep a copy of {key}\n\
         in another place. Together they open everything; without the key the backup opens nothing.",
        manifest.rows,
        directory.display()
    );
    print::done(
        json,
        &json!({ "status": "ok", "directory": directory, "manifest": manifest, "master_key": key }),
        &sentence,
    );
    Ok(())
}

/// Where the master key is.
fn master_key(config: &Config) -> String {
    let file = config.state_dir.join("master.key");
    if file.exists() { file.display().to_string() } else { "the systemd credential master.key".into() }
}

async fn copy(directory: &Path, client: &Client) -> Result<Manifest, CliError> {
    let rows = directory.join(ROWS);
    let failed = |cause| CliError::Write { path: rows.clone(), cause };
    let mut file = BufWriter::new(create(&rows).map_err(failed)?);
    let mut lines = client.lines(Method::GET, "/admin/backup", Body::empty()).await?;
    let (mut bar, mut about, mut tally) = (Bar::new(), 0, Tally::default());
    while let Some(line) = next_line(&mut lines).await? {
        if line.starts_with("{\"table\":") {
            let row: Row = serde_json::from_str(&line)
                .map_err(|error| CliError::Refused(format!("a row cannot be read: {error}")))?;
            tally.add(row.table(), &line);
            writeln!(file, "{line}").map_err(failed)?;
            bar.show("copying", tally.rows(), about);
            continue;
        }
        match read_line::<()>(&line)? {
            Line::About(rows) => about = rows,
            Line::Error(error) => return Err(CliError::Refused(error.message)),
            Line::Manifest(manifest) => {
                if tally.counts().into_iter().any(|(table, count)| manifest.count(table) != Some(count)) {
                    return Err(CliError::Refused("what arrived is not what was sent: back up again".into()));
                }
                file.into_inner().map_err(|error| failed(error.into_error()))?.sync_all().map_err(failed)?;
                write_manifest(directory, &manifest).map_err(failed)?;
                return Ok(manifest);
            }
            Line::Progress(_) | Line::Done(()) => {}
        }
    }
    Err(CliError::Refused("the daemon ended before the backup was complete: back up again".into()))
}

fn create(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn write_manifest(directory: &Path, manifest: &Manifest) -> std::io::Result<()> {
    let part = directory.join("manifest.json.part");
    let mut file = create(&part)?;
    serde_json::to_writer_pretty(&mut file, manifest)?;
    writeln!(file)?;
    file.sync_all()?;
    std::fs::rename(&part, directory.join(MANIFEST))?;
    File::open(directory)?.sync_all()?;
    // The directory's own name, too.
    match directory.canonicalize()?.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}
