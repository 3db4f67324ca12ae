//! `codex-authd records export DIR`: saves the readable part of the embedded records as a backup, damaged or not.
//!
//! No daemon may run. No secret is opened: rows are written as they are stored. The records are not changed.

use std::io::{BufWriter, Write as _};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::archive::{New, create, manifest_text};
use super::{CliError, print};
use crate::config::Config;
use crate::daemon::owner::as_caller;
use crate::daemon::{DaemonError, state};
use crate::platform::{Clock as _, System};
use crate::records::RecordsError;
use crate::records::copy::{Table, Tally};
use crate::service::transfer::{FORMAT, Manifest};

#[derive(Subcommand)]
pub enum Command {
    /// Save the readable part of damaged records in a directory, as a backup
    ///
    /// Use it if the daemon refuses the records and there is no backup. Stop the daemon first. If the sealing keys, the
    /// server's key and the authorities are readable, `codex-authd restore DIR` accepts the result, with the present
    /// master key. Exits with 3 if something could not be read. It needs disk space for a copy of the records in the
    /// state directory.
    Export(Export),
}

#[derive(Args)]
pub struct Export {
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// Readable rows that a restore would not accept.
const LEFT_OUT: &str = "left-out.jsonl";

pub fn run(command: &Command, config: &Config, json: bool) -> Result<(), CliError> {
    let Command::Export(Export { directory }) = command;
    let new = New::begin(directory)?;
    let failed = |cause| CliError::Write { path: directory.clone(), cause };
    // The store's code may panic on damaged records; `rescue` turns that into an error.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let rescue = state::rescue(config);
    std::panic::set_hook(hook);
    let rescue = rescue.map_err(DaemonError::from)?;
    let mut rows = BufWriter::new(new.rows().map_err(failed)?);
    let mut left_out = None;
    let mut tally = Tally::default();
    let to_io = |error: RecordsError| std::io::Error::other(error.to_string());
    let take = |row: &crate::records::copy::Row| {
        let line = row.line().map_err(to_io)?;
        tally.add(row.table(), &line);
        writeln!(rows, "{line}")
    };
    let leave = |row: &crate::records::copy::Row| {
        let file = match &mut left_out {
            Some(file) => file,
            None => left_out.insert(BufWriter::new(as_caller(|| create(&directory.join(LEFT_OUT)))?)),
        };
        writeln!(file, "{}", row.line().map_err(to_io)?)
    };
    let rescued = rescue.records().rows(take, leave).map_err(|error| CliError::Refused(error.to_string()))?;
    let rescued = rescued.map_err(failed)?;
    rows.into_inner().map_err(|error| failed(error.into_error()))?.sync_all().map_err(failed)?;
    if let Some(file) = left_out {
        file.into_inner().map_err(|error| failed(error.into_error()))?.sync_all().map_err(failed)?;
    }
    let manifest = Manifest {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").into(),
        created_at: System.now(),
        epoch: rescue.records().epoch(),
        rows: tally.rows(),
        tables: tally.counts(),
        has_keys: false,
    };
    new.finish(&manifest_text(&manifest).map_err(failed)?).map_err(failed)?;
    let salvaged = rescue.records().salvaged;
    let is_whole = salvaged.is_whole() && rescued.missing.is_empty() && rescued.left_out == 0;
    let head = ["KIND", "EXPORTED", "KNOWN TO BE MISSING"].map(String::from).to_vec();
    let count =
        |counts: &std::collections::BTreeMap<Table, u64>, table| counts.get(&table).copied().unwrap_or_default();
    let lines = Table::ALL.into_iter().map(|table| {
        let (there, missing) = (count(&rescued.exported, table), count(&rescued.missing, table));
        vec![table.name().to_owned(), there.to_string(), missing.to_string()]
    });
    let table = print::table(&std::iter::once(head).chain(lines).collect::<Vec<_>>());
    let mut said = Vec::new();
    if !salvaged.is_whole() {
        said.push(format!(
            "{} places of the records could not be read, and {} rows have a wrong checksum.",
            salvaged.unreadable_ranges, salvaged.damaged_rows
        ));
    }
    for (table, missing) in &rescued.missing {
        said.push(format!("missing: {missing} of {}", table.name()));
    }
    if rescued.left_out > 0 {
        said.push(format!(
            "{} rows refer to missing rows: they are in {}, which restore does not read.",
            rescued.left_out,
            directory.join(LEFT_OUT).display()
        ));
    }
    if let Some(version) = rescued.other_canonical {
        said.push(format!(
            "the canonical login could not be read: version {version}, the newest readable one, replaces it."
        ));
    }
    if !salvaged.is_whole() && !rescue.records().has_settings() {
        said.push(
            "the settings could not be read: the defaults of a new installation replace them (kill switch off).".into(),
        );
    }
    said.push(match rescued.is_restorable {
        true => format!("restore it with codex-authd restore {} and the present master key.", directory.display()),
        false => "it cannot be restored: the server's key, the sealing keys or the authorities are missing.".into(),
    });
    let summary = json!({
        "status": if is_whole { "ok" } else { "incomplete" },
        "directory": directory,
        "exported": rescued.exported,
        "missing": rescued.missing,
        "left_out": rescued.left_out,
        "unreadable_places": salvaged.unreadable_ranges,
        "damaged_rows": salvaged.damaged_rows,
        "restorable": rescued.is_restorable,
    });
    print::done(json, &summary, &table)?;
    said.iter().for_each(|line| print::note(&format!("{line}\n")));
    if is_whole { Ok(()) } else { Err(CliError::Incomplete) }
}
