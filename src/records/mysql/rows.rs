//! Conversion between Rust values and the values in the tables.

use std::net::IpAddr;

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Params, Row, Value};
use time::{Date, Month, OffsetDateTime, PrimitiveDateTime, Time, UtcOffset};
use uuid::Uuid;

use super::connections::Outcome;
use crate::model::digest::Digest;
use crate::records::RecordsError;
use crate::records::rules::truncate;
use crate::seal::{self, KeyId, Sealed};

type Result<T> = crate::records::Result<T>;

pub(super) fn corrupt(table: &str, cause: impl std::fmt::Display) -> RecordsError {
    RecordsError::Corrupt(format!("{table}: {cause}"))
}

/// The columns of a row, read one after the other.
pub(super) struct Columns {
    table: &'static str,
    values: std::vec::IntoIter<Value>,
}

impl Columns {
    pub fn of(table: &'static str, row: Row) -> Self {
        Self { table, values: row.unwrap().into_iter() }
    }

    fn corrupt(&self, cause: impl std::fmt::Display) -> RecordsError {
        corrupt(self.table, cause)
    }

    fn next(&mut self) -> Result<Value> {
        self.values.next().ok_or_else(|| self.corrupt("a column is missing"))
    }

    fn optional<T>(&mut self, read: impl FnOnce(&Self, Value) -> Result<T>) -> Result<Option<T>> {
        match self.next()? {
            Value::NULL => Ok(None),
            value => read(self, value).map(Some),
        }
    }

    fn required<T>(&mut self, read: impl FnOnce(&Self, Value) -> Result<T>) -> Result<T> {
        let value = self.next()?;
        read(self, value)
    }

    fn read_number(&self, value: Value) -> Result<u64> {
        match value {
            Value::UInt(number) => Ok(number),
            Value::Int(number) => number.try_into().map_err(|error| self.corrupt(error)),
            _ => Err(self.corrupt("a column is not a number")),
        }
    }

    fn read_bytes(&self, value: Value) -> Result<Vec<u8>> {
        match value {
            Value::Bytes(bytes) => Ok(bytes),
            _ => Err(self.corrupt("a column is not text")),
        }
    }

    fn read_text(&self, value: Value) -> Result<String> {
        String::from_utf8(self.read_bytes(value)?).map_err(|error| self.corrupt(error))
    }

    fn read_digest(&self, value: Value) -> Result<Digest> {
        let bytes = self.read_bytes(value)?.try_into();
        bytes.map(Digest::from_bytes).map_err(|_| self.corrupt("a digest is not 32 bytes"))
    }

    fn read_time(&self, value: Value) -> Result<OffsetDateTime> {
        let Value::Date(year, month, day, hour, minute, second, micros) = value else {
            return Err(self.corrupt("a column is not a time"));
        };
        let read = || {
            let date = Date::from_calendar_date(year.into(), Month::try_from(month)?, day)?;
            Ok(PrimitiveDateTime::new(date, Time::from_hms_micro(hour, minute, second, micros)?).assume_utc())
        };
        read().map_err(|error: time::error::ComponentRange| self.corrupt(error))
    }

    pub fn number(&mut self) -> Result<u64> {
        self.required(Self::read_number)
    }

    pub fn optional_number(&mut self) -> Result<Option<u64>> {
        self.optional(Self::read_number)
    }

    pub fn truth(&mut self) -> Result<bool> {
        Ok(self.number()? != 0)
    }

    pub fn text(&mut self) -> Result<String> {
        self.required(Self::read_text)
    }

    pub fn optional_text(&mut self) -> Result<Option<String>> {
        self.optional(Self::read_text)
    }

    pub fn sealed(&mut self) -> Result<Sealed> {
        self.required(Self::read_bytes).map(Sealed::from_bytes)
    }

    pub fn optional_sealed(&mut self) -> Result<Option<Sealed>> {
        Ok(self.optional(Self::read_bytes)?.map(Sealed::from_bytes))
    }

    pub fn digest(&mut self) -> Result<Digest> {
        self.required(Self::read_digest)
    }

    pub fn optional_digest(&mut self) -> Result<Option<Digest>> {
        self.optional(Self::read_digest)
    }

    pub fn time(&mut self) -> Result<OffsetDateTime> {
        self.required(Self::read_time)
    }

    pub fn optional_time(&mut self) -> Result<Option<OffsetDateTime>> {
        self.optional(Self::read_time)
    }

    pub fn id(&mut self) -> Result<Uuid> {
        self.required(Self::read_bytes).and_then(|bytes| Uuid::from_slice(&bytes).map_err(|error| self.corrupt(error)))
    }

    pub fn optional_id(&mut self) -> Result<Option<Uuid>> {
        let bytes = self.optional(Self::read_bytes)?;
        bytes.map(|bytes| Uuid::from_slice(&bytes)).transpose().map_err(|error| self.corrupt(error))
    }

    /// A value that is stored as text.
    pub fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(&mut self) -> Result<T> {
        let text = self.text()?;
        text.parse().map_err(|error| self.corrupt(error))
    }

    pub fn optional_parsed<T: std::str::FromStr<Err: std::fmt::Display>>(&mut self) -> Result<Option<T>> {
        let text = self.optional_text()?;
        text.map(|text| text.parse()).transpose().map_err(|error| self.corrupt(error))
    }
}

pub(super) fn time(at: OffsetDateTime) -> Value {
    let at = at.to_offset(UtcOffset::UTC);
    let year = at.year().clamp(0, 9999).try_into().unwrap_or_default();
    Value::Date(year, at.month().into(), at.day(), at.hour(), at.minute(), at.second(), at.microsecond())
}

pub(super) fn optional_time(at: Option<OffsetDateTime>) -> Value {
    at.map_or(Value::NULL, time)
}

pub(super) fn digest(digest: &Digest) -> Value {
    Value::Bytes(digest.as_bytes().to_vec())
}

pub(super) fn optional_digest(value: Option<&Digest>) -> Value {
    value.map_or(Value::NULL, digest)
}

pub(super) fn id(id: Uuid) -> Value {
    Value::Bytes(id.as_bytes().to_vec())
}

pub(super) fn address(address: Option<IpAddr>) -> Value {
    address.map_or(Value::NULL, |address| address.to_string().into())
}

pub(super) fn sealed(value: &Sealed) -> Value {
    Value::Bytes(value.as_bytes().to_vec())
}

/// The data key of a sealed value, for its index. An unknown form counts as older than every key, so that a rotation
/// finds it. `NULL`: the value is empty.
pub(super) fn key_of(value: &Sealed) -> Value {
    if value.as_bytes().is_empty() {
        return Value::NULL;
    }
    seal::key_of(value).unwrap_or(KeyId::SECRETBOX).0.into()
}

/// `(?, ?), (?, ?)` for two rows of two columns.
pub(super) fn places(rows: usize, columns: usize) -> String {
    let row = format!("({})", vec!["?"; columns].join(", "));
    vec![row; rows].join(", ")
}

/// A time as the tables store it.
pub(super) fn truncated(mut at: OffsetDateTime) -> OffsetDateTime {
    truncate(&mut at);
    at
}

/// The end of a statement, with its values, that selects at most `limit` rows after the key `after`, in the order of
/// `column`.
pub(super) fn page_after(column: &str, after: Option<Value>, limit: usize) -> (String, Vec<Value>) {
    let condition = if after.is_some() { format!("WHERE {column} > ? ") } else { String::new() };
    let values = after.into_iter().chain([(limit as u64).into()]).collect();
    (format!("{condition}ORDER BY {column} LIMIT ?"), values)
}

pub(super) async fn read_all<T>(
    connection: &mut Conn,
    statement: String,
    values: Vec<Value>,
    read: impl Fn(Row) -> Result<T> + Send,
) -> Outcome<Vec<T>> {
    let rows: Vec<Row> = connection.exec(statement, Params::Positional(values)).await?;
    Ok(rows.into_iter().map(read).collect::<Result<_>>()?)
}
