//! The fuzz targets of `fuzz/` for this program. Each function accepts any bytes and panics if a property does not hold.
//! `make fuzz` and the tests below, which replay the kept corpus, run the same code.

use codex_authd_client::types;

use crate::{baked, config, daemon, document, messages, state};

/// A `host.toml`: what is accepted is safe to use, and is the same when it is written and read again.
pub fn host_toml(bytes: &[u8]) {
    let Ok(values) = config::parse(bytes) else { return };
    assert_eq!(values.check(), Ok(()));
    let written = config::render(&values);
    let again = config::parse(written.as_bytes()).expect("what is written can be read");
    assert_eq!(config::render(&again), written);
    assert!(!format!("{values:?}").contains(values.api_key.expose()) || values.api_key.expose().len() < 8);
}

/// A downloaded script, and text of hosts and daemons: what is read from it is safe to use.
pub fn baked_script(bytes: &[u8]) {
    if let Some(values) = baked::values(bytes) {
        assert_eq!(values.check(), Ok(()));
        let again = config::parse(config::render(&values).as_bytes()).expect("what is written can be read");
        assert_eq!((again.ca_pem, again.fqdn), (values.ca_pem, values.fqdn));
    }
    let text = String::from_utf8_lossy(bytes);
    let shown = messages::clean(&text, 300);
    assert!(shown.chars().count() <= 300 && !shown.chars().any(char::is_control));
}

/// An answer of the daemon: what is accepted is safe to compare, print, and put into arguments.
pub fn sync_answer(bytes: &[u8]) {
    let Ok(envelope) = serde_json::from_slice::<types::EnvelopeAuthAnswer>(bytes) else { return };
    let Ok(answer) = daemon::answer(envelope.data) else { return };
    assert!(answer.digest.is_empty() || state::is_digest(&answer.digest));
    for version in [answer.client_version, answer.wrapper.version].into_iter().flatten() {
        assert!(daemon::is_version(&version) && version.is_ascii() && !version.starts_with('-'));
    }
    assert!(answer.wrapper.sha256.is_none_or(|digest| state::is_digest(&digest)));
}

/// An `auth.json`: it is a login only if another reader finds an object in it, and its date has one form.
pub fn login_document(bytes: &[u8]) {
    let examined = document::examine(bytes);
    if examined.fault.is_none() {
        let value: serde_json::Value = serde_json::from_slice(bytes).expect("a login is JSON");
        assert!(value.is_object() && bytes.len() <= 1 << 20);
    }
    if let Some(date) = examined.last_refresh {
        let again = document::examine(format!(r#"{{"last_refresh": "{date}"}}"#).as_bytes());
        assert_eq!(again.last_refresh, Some(date), "the form of a date is stable");
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// Runs every input of the kept corpus through its target. Fails for a target without a corpus.
    fn replay(name: &str, target: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name);
        let mut count = 0;
        for entry in std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            target(&std::fs::read(entry.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count >= 5, "only {count} inputs in {}", folder.display());
    }

    #[test]
    fn the_corpora_hold() {
        replay("host_toml", super::host_toml);
        replay("baked_script", super::baked_script);
        replay("sync_answer", super::sync_answer);
        replay("login_document", super::login_document);
    }
}
