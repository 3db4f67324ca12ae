//! The text of a document inside an answer.

use std::fmt;
use std::ops::Deref;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use zeroize::Zeroize as _;

/// The text of a checked document, which is written into answers unchanged. It is wiped when dropped.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub struct DocumentText(Box<RawValue>);

impl DocumentText {
    pub fn new(text: &str) -> serde_json::Result<Self> {
        RawValue::from_string(text.to_owned()).map(Self)
    }
}

impl Deref for DocumentText {
    type Target = str;

    fn deref(&self) -> &str {
        self.0.get()
    }
}

impl fmt::Debug for DocumentText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Drop for DocumentText {
    fn drop(&mut self) {
        let text = std::mem::replace(&mut self.0, RawValue::NULL.to_owned());
        String::from(Box::<str>::from(text)).zeroize();
    }
}
