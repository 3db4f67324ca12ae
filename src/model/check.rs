//! The result of checking one requirement. All checks of `doctor` use it.

use std::borrow::Cow;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub name: Cow<'static, str>,
    pub verdict: Verdict,
    /// What was found, in a sentence.
    pub found: String,
    /// What mends it.
    pub remedy: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Good,
    /// It works, but with a weakness, or it will stop working soon.
    Weak,
    /// The feature that needs it does not work.
    Missing,
}

impl Verdict {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Weak => "weak",
            Self::Missing => "missing",
        }
    }
}

impl Check {
    pub fn good(name: &'static str, found: impl Into<String>) -> Self {
        Self { name: name.into(), verdict: Verdict::Good, found: found.into(), remedy: None }
    }

    pub fn not(name: &'static str, verdict: Verdict, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name: name.into(), verdict, found: found.into(), remedy: Some(remedy.into()) }
    }

    pub fn weak(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::not(name, Verdict::Weak, found, remedy)
    }

    pub fn missing(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::not(name, Verdict::Missing, found, remedy)
    }
}
