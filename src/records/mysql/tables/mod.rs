//! Reads and writes the rows of each table. This module decides nothing: the files above do, within a transaction.

pub mod audit_log;
pub mod authorities;
pub mod certificates;
pub mod hosts;
pub mod identities;
pub mod installers;
pub mod sealing;
pub mod sessions;
pub mod settings;
pub mod users;
pub mod versions;
