//! Rows together with their indexes and marks. This module decides nothing: the files above do, within a transaction.

pub mod authorities;
pub mod hosts;
pub mod people;
pub mod sealed_index;
pub mod versions;
