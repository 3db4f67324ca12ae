//! Formats the results as a table.

use std::time::Duration;

use crate::load::Measured;

/// One figure. A rate also has latencies and CPU time, in microseconds.
#[derive(Clone, Copy)]
pub struct Cell {
    pub value: f64,
    pub unit: &'static str,
    pub p50: Option<f64>,
    pub p99: Option<f64>,
    pub cpu: Option<f64>,
    /// Valid but uncounted answers per second.
    pub besides: f64,
}

impl Cell {
    fn plain(value: f64, unit: &'static str) -> Self {
        Self { value, unit, p50: None, p99: None, cpu: None, besides: 0.0 }
    }

    pub fn rate(measured: &Measured) -> Self {
        Self {
            value: measured.per_second,
            unit: "/s",
            p50: Some(measured.p50),
            p99: Some(measured.p99),
            cpu: Some(measured.cpu),
            besides: measured.besides,
        }
    }

    pub fn per_second(count: usize, time: Duration) -> Self {
        Self::plain(count as f64 / time.as_secs_f64(), "/s")
    }

    pub fn milliseconds(time: Duration) -> Self {
        Self::plain(time.as_secs_f64() * 1e3, " ms")
    }

    /// The median of some times, which is also the figure. Sorts the times.
    pub fn times(times: &mut [Duration]) -> Self {
        times.sort_unstable();
        let at = |share: f64| times.get((times.len() as f64 * share) as usize).copied().unwrap_or_default();
        let microseconds = |time: Duration| Some(time.as_secs_f64() * 1e6);
        let (p50, p99) = (at(0.5), at(0.99));
        Self { p50: microseconds(p50), p99: microseconds(p99), ..Self::milliseconds(p50) }
    }

    pub fn mebibytes(kibibytes: f64) -> Self {
        Self::plain(kibibytes / 1024.0, " MiB")
    }
}

/// One measured quantity: a cell for each round, for ours and for the baseline.
pub struct Row {
    pub what: String,
    beside: &'static str,
    pub ours: Vec<Cell>,
    pub baseline: Vec<Cell>,
}

impl Row {
    pub fn new(what: String, beside: &'static str) -> Self {
        Self { what, beside, ours: Vec::new(), baseline: Vec::new() }
    }
}

pub fn table(rows: &[Row]) -> String {
    let head = ["", "ours", "p50 ms", "p99 ms", "CPU µs", "beside", "", "p50 ms", "p99 ms", "CPU µs", "ours/beside"];
    let mut lines = vec![head.map(String::from).to_vec()];
    for row in rows {
        let (ours, baseline) = (median(&row.ours), median(&row.baseline));
        let besides =
            if ours.besides > 0.0 { format!(" (and {:.0}/s overtaken)", ours.besides) } else { String::new() };
        let mut line = vec![row.what.clone() + &besides];
        line.extend(in_words(&ours));
        line.push(row.beside.into());
        line.extend(in_words(&baseline));
        let ratio = ours.value / baseline.value;
        line.push(if ratio < 0.1 { format!("{ratio:.4}") } else { format!("{ratio:.2}") });
        lines.push(line);
    }
    let widths: Vec<usize> = (0..head.len())
        .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for (index, line) in lines.iter().enumerate() {
        let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
            // Text is left-aligned, figures are right-aligned.
            if matches!(column, 0 | 5) { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        text.push_str(&format!("| {} |\n", cells.collect::<Vec<_>>().join(" | ")));
        if index == 0 {
            let rules = widths.iter().enumerate().map(|(column, &width)| {
                if matches!(column, 0 | 5) { "-".repeat(width) } else { format!("{}:", "-".repeat(width - 1)) }
            });
            text.push_str(&format!("| {} |\n", rules.collect::<Vec<_>>().join(" | ")));
        }
    }
    text
}

fn in_words(cell: &Cell) -> [String; 4] {
    let milliseconds = |time: Option<f64>| time.map(|time| format!("{:.2}", time / 1e3)).unwrap_or_default();
    let digits = usize::from(cell.value < 100.0);
    [
        format!("{}{}", thousands(cell.value, digits), cell.unit),
        milliseconds(cell.p50),
        milliseconds(cell.p99),
        cell.cpu.map(|cpu| format!("{cpu:.0}")).unwrap_or_default(),
    ]
}

fn thousands(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    let whole = text.split('.').next().unwrap_or_default().len();
    let mut out = String::new();
    for (index, digit) in text.chars().enumerate() {
        if index > 0 && index < whole && (whole - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// The median of each figure separately.
fn median(rounds: &[Cell]) -> Cell {
    let middle = |figure: fn(&Cell) -> Option<f64>| {
        let mut values: Vec<f64> = rounds.iter().filter_map(figure).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    Cell {
        value: middle(|cell| Some(cell.value)).unwrap_or(f64::NAN),
        unit: rounds.first().map_or("", |cell| cell.unit),
        p50: middle(|cell| cell.p50),
        p99: middle(|cell| cell.p99),
        cpu: middle(|cell| cell.cpu),
        besides: middle(|cell| Some(cell.besides)).unwrap_or_default(),
    }
}
