//! The results of checks, as answers contain them.

use poem_openapi::Object;
use serde::{Deserialize, Serialize};

use super::closed_set::closed_set;
use crate::model::check::{Check, Verdict};

#[derive(Debug, Object, Serialize, Deserialize)]
#[oai(rename = "CheckList")]
pub struct Checks {
    /// Nothing is `missing`.
    pub works: bool,
    pub checks: Vec<CheckBody>,
}

closed_set! {
    /// `weak`: it works, and something is weaker than it could be, or will be missing soon. `missing`: what it is needed for
    /// does not work.
    pub enum CheckVerdict { Good = "good", Weak = "weak", Missing = "missing" } of Verdict
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct CheckBody {
    pub name: String,
    pub verdict: CheckVerdict,
    /// What was found, in a sentence.
    pub found: String,
    /// What mends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl From<Vec<Check>> for Checks {
    fn from(checks: Vec<Check>) -> Self {
        let works = checks.iter().all(|check| check.verdict != Verdict::Missing);
        Self { works, checks: checks.into_iter().map(CheckBody::from).collect() }
    }
}

impl From<Check> for CheckBody {
    fn from(Check { name, verdict, found, remedy }: Check) -> Self {
        Self { name: name.into_owned(), verdict: verdict.into(), found, remedy }
    }
}

impl Checks {
    /// Joins both lists.
    pub fn and(mut self, others: Self) -> Self {
        self.works &= others.works;
        self.checks.extend(others.checks);
        self
    }
}
