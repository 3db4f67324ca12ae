//! The fuzz targets of `fuzz/`. Each function accepts any bytes and panics if a property does not hold. `make fuzz` and
//! the tests below, which replay the kept corpus, run the same code.
//!
//! Compiled for tests and for fuzzing only. It may call every room; no room may call it. A check here uses other means
//! than the code it checks: another parser, the shell itself, or two ways that must agree.

mod addresses;
mod baking;
mod configuration;
mod document;
mod egress;
mod oracle;
mod values;

pub use addresses::addresses;
pub use baking::baking;
pub use configuration::configuration;
pub use document::{auth_document, digest};
pub use egress::egress;
pub use values::values;

use time::OffsetDateTime;
use time::macros::datetime;

use crate::model::auth_document::DocumentRules;

const NOW: OffsetDateTime = datetime!(2026-11-21 12:00 UTC);
/// The laxest rules an operator can set, so that more documents reach the later checks. Not strict, because the oracle
/// does not know what Codex can load.
const RULES: DocumentRules = DocumentRules { min_token_length: DocumentRules::FLOOR, strict: false };

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// Runs every input of the kept corpus through its target. Fails for a target without a corpus.
    fn replay(name: &str, target: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
        let mut count = 0;
        for entry in std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            let outcome = std::panic::catch_unwind(|| target(&bytes));
            assert!(outcome.is_ok(), "{} fails in the target {name}", path.display());
            count += 1;
        }
        assert!(count >= 5, "only {count} inputs in {}", folder.display());
    }

    #[test]
    fn the_corpus_of_auth_documents_holds() {
        replay("auth_document", super::auth_document);
    }

    #[test]
    fn the_corpus_of_digests_holds() {
        replay("digest", super::digest);
    }

    #[test]
    fn the_corpus_of_addresses_holds() {
        replay("addresses", super::addresses);
    }

    #[test]
    fn the_corpus_of_baked_values_holds() {
        replay("baking", super::baking);
    }

    #[test]
    fn the_corpus_of_configurations_holds() {
        replay("configuration", super::configuration);
    }

    #[test]
    fn the_corpus_of_what_probes_ask_for_holds() {
        replay("egress", super::egress);
    }

    #[test]
    fn the_corpus_of_dates_versions_and_filters_holds() {
        replay("values", super::values);
    }
}
