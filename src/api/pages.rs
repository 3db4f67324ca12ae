//! Lists come in pages: `limit` and `cursor` of the request, `next` of the answer.
//!
//! A cursor names the last entry of a page, and says where that stood. The next page begins behind that entry. If the
//! entry is gone, it begins where the entry stood.

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use poem_openapi::param::Query;

use crate::service::ServiceError;

/// Entries on a page, if the request does not say.
pub const DEFAULT_LIMIT: u32 = 100;

pub fn default_limit() -> u32 {
    DEFAULT_LIMIT
}

/// One page of a list in memory.
pub struct Page<T> {
    pub entries: Vec<T>,
    /// The cursor of the next page. `None`: this is the last one.
    pub next: Option<String>,
}

impl<T> Page<T> {
    /// `id`: what tells an entry from the others of the list.
    pub fn cut(
        entries: Vec<T>,
        cursor: &Query<Option<String>>,
        limit: &Query<u32>,
        id: impl Fn(&T) -> String,
    ) -> Result<Self, ServiceError> {
        let begin = match &cursor.0 {
            None => 0,
            Some(cursor) => {
                let (stood, last) = decode(cursor).and_then(split).ok_or_else(foreign)?;
                entries.iter().position(|entry| id(entry) == last).map_or(stood, |place| place + 1)
            }
        };
        let mut rest = entries.into_iter().skip(begin);
        let entries: Vec<T> = rest.by_ref().take(limit.0 as usize).collect();
        let is_last = rest.next().is_none();
        let place = begin + entries.len().saturating_sub(1);
        let next = entries.last().filter(|_| !is_last).map(|last| encode(&format!("{place} {}", id(last))));
        Ok(Self { entries, next })
    }
}

fn split(text: String) -> Option<(usize, String)> {
    let (place, id) = text.split_once(' ')?;
    Some((place.parse().ok()?, id.to_owned()))
}

/// Cursors are opaque to clients.
pub fn encode(text: &str) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(text)
}

pub fn decode(cursor: &str) -> Option<String> {
    String::from_utf8(BASE64_URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()
}

/// The cursor of a list whose entries have numbers: the number of the last entry.
pub fn number(cursor: &Query<Option<String>>) -> Result<Option<u64>, ServiceError> {
    cursor.0.as_ref().map(|cursor| cursor.parse().map_err(|_| foreign())).transpose()
}

pub fn foreign() -> ServiceError {
    ServiceError::invalid("cursor", "must be `next` of the page before; without a cursor the list begins anew")
}

/// A list that was read in pages, for the commands.
pub trait Listed {
    fn next(&self) -> Option<&str>;
    fn extend(&mut self, more: Self);
}

macro_rules! listed {
    ($($list:ty: $entries:ident),+ $(,)?) => {$(
        impl $crate::api::pages::Listed for $list {
            fn next(&self) -> Option<&str> {
                self.next.as_deref()
            }

            fn extend(&mut self, more: Self) {
                self.$entries.extend(more.$entries);
                self.next = more.next;
            }
        }
    )+};
}

pub(crate) use listed;

#[cfg(test)]
mod tests {
    use super::*;

    fn page(entries: &[u32], cursor: Option<&str>, limit: u32) -> Result<Page<u32>, ServiceError> {
        Page::cut(entries.to_vec(), &Query(cursor.map(String::from)), &Query(limit), u32::to_string)
    }

    #[test]
    fn pages_have_every_entry_once() {
        let all: Vec<u32> = (0..25).map(|n| n * 7 % 25).collect();
        for limit in [1, 4, 5, 24, 25, 26] {
            let (mut found, mut cursor) = (Vec::new(), None);
            loop {
                let page = page(&all, cursor.as_deref(), limit).unwrap();
                assert!(page.entries.len() <= limit as usize);
                found.extend(page.entries);
                cursor = page.next;
                if cursor.is_none() {
                    break;
                }
            }
            assert_eq!(found, all, "{limit}");
        }
        assert!(page(&[], None, 10).unwrap().next.is_none());
    }

    #[test]
    fn a_page_goes_on_where_an_entry_stood_that_is_gone() {
        let next = page(&[5, 6, 7, 8], None, 2).unwrap().next.unwrap();
        assert_eq!(page(&[5, 7, 8], Some(&next), 2).unwrap().entries, [7, 8]);
        assert_eq!(page(&[4, 5, 6, 7, 8], Some(&next), 2).unwrap().entries, [7, 8], "another was added before it");
        assert_eq!(page(&[5], Some(&next), 2).unwrap().entries, [] as [u32; 0]);
        for foreign in ["", "x", "NQ", "MTIz", "\u{e9}"] {
            assert!(page(&[5], Some(foreign), 2).is_err(), "{foreign:?}");
        }
    }
}
