//! The speed of the disk for one writer: a block is written and flushed repeatedly.

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::Result;
use crate::load::percentile;
use crate::report::Cell;

const BLOCK: [u8; 4096] = [0x5a; 4096];

/// `fdatasync`s per second of one block in a file in `directory`. Blocks the thread, which does nothing else.
pub fn syncs(directory: &Path, duration: Duration) -> Result<Cell> {
    let file = tempfile::tempfile_in(directory)?;
    file.write_all_at(&BLOCK, 0)?;
    file.sync_all()?;
    let mut latencies = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < duration {
        let written = Instant::now();
        file.write_all_at(&BLOCK, 0)?;
        file.sync_data()?;
        latencies.push(u32::try_from(written.elapsed().as_micros())?);
    }
    let per_second = latencies.len() as f64 / begin.elapsed().as_secs_f64();
    latencies.sort_unstable();
    Ok(Cell {
        value: per_second,
        unit: "/s",
        p50: Some(percentile(&latencies, 50)),
        p99: Some(percentile(&latencies, 99)),
        cpu: None,
        besides: 0.0,
    })
}
