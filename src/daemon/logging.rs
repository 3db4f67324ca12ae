//! Logs: journald with structured fields under systemd, lines on stderr otherwise.
//!
//! `RUST_LOG` (`error`, `warn`, `info`, `debug` or `trace`; default `info`) is the level of our own events. Events of
//! dependencies are shown from `warn` up, at any level: at `trace` they print the data that they read and write.

use std::io::Write as _;

use log::{LevelFilter, Log, Metadata, Record};

/// Starts logging to the journal or to stderr. Called once, at the start.
pub fn start() {
    let level = std::env::var("RUST_LOG").ok().and_then(|level| level.parse().ok()).unwrap_or(LevelFilter::Info);
    let sink: Box<dyn Log> = match journal() {
        Some(journal) => Box::new(journal),
        None => Box::new(terminal()),
    };
    // A second call in one process (tests) keeps the first logger.
    if log::set_boxed_logger(Box::new(OursAndWarnings(sink))).is_ok() {
        log::set_max_level(level.max(LevelFilter::Warn));
    }
}

fn journal() -> Option<systemd_journal_logger::JournalLog> {
    if !systemd_journal_logger::connected_to_journal() {
        return None;
    }
    systemd_journal_logger::JournalLog::new().ok()
}

fn terminal() -> env_logger::Logger {
    let mut builder = env_logger::Builder::new();
    builder.filter_level(LevelFilter::Trace).format(|line, record| {
        write!(line, "{} {:<5} {}", line.timestamp_seconds(), record.level(), record.args())?;
        for (key, value) in fields(record) {
            write!(line, " {key}={value}")?;
        }
        writeln!(line)
    });
    builder.build()
}

struct OursAndWarnings(Box<dyn Log>);

impl Log for OursAndWarnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn || metadata.target().starts_with(env!("CARGO_CRATE_NAME"))
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.0.log(record);
        }
    }

    fn flush(&self) {
        self.0.flush();
    }
}

fn fields(record: &Record<'_>) -> Vec<(String, String)> {
    struct Collect(Vec<(String, String)>);
    impl<'kvs> log::kv::VisitSource<'kvs> for Collect {
        fn visit_pair(&mut self, key: log::kv::Key<'kvs>, value: log::kv::Value<'kvs>) -> Result<(), log::kv::Error> {
            // One line for one record: a value must not start a new line.
            let value: String = value.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            self.0.push((key.to_string(), value));
            Ok(())
        }
    }
    let mut collect = Collect(Vec::new());
    // The visitor never fails.
    let _ = record.key_values().visit(&mut collect);
    collect.0
}
