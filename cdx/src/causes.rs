//! Names what made a call fail, if it is this machine and not the daemon: a proxy or a trust store of the environment.

use std::fs;
use std::path::PathBuf;

use codex_authd_client::{EnvironmentProxy, types};

use crate::config::Config;
use crate::daemon::{Outcome, Trouble, Trust};
use crate::messages::clean;

const UNTRUSTED: &str = "the daemon's certificate cannot be trusted";

/// A file of authorities that replaces this machine's store, as for curl. The variables of OpenSSL do so too, in the
/// client's library.
pub fn bundle_of_the_environment() -> Option<PathBuf> {
    std::env::var_os("CURL_CA_BUNDLE").filter(|value| !value.is_empty()).map(PathBuf::from)
}

pub fn untrusted(trust: Trust, config: &Config) -> Trouble {
    let mut trouble = Trouble {
        outcome: Outcome::Untrusted,
        status: None,
        reason: UNTRUSTED.to_owned(),
        remedy: "the daemon's CA may have changed (install anew), this clock may be wrong, or somebody intercepts the connection".to_owned(),
    };
    if trust == Trust::Ours {
        if !config.values.ca_pem.contains("-----BEGIN") {
            trouble.reason =
                format!("{UNTRUSTED}: ca_pem in {} contains no certificate (PEM)", crate::home::shown(&config.file));
            trouble.remedy = "install anew with a fresh installer command".to_owned();
        }
        return trouble;
    }
    let variables = ["CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"];
    let set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let Some(variable) = variables.into_iter().find(|name| set(name)) else {
        return trouble;
    };
    let file = PathBuf::from(std::env::var_os(variable).unwrap_or_default());
    let fault = fault_of(&file, variable == "SSL_CERT_DIR").unwrap_or("does not vouch for it");
    trouble.reason = format!("{UNTRUSTED}: {variable} names {}, which {fault}", crate::home::shown(&file));
    trouble.remedy = format!("unset {variable}, or add the CA of the daemon's certificate to what it names");
    trouble
}

fn fault_of(file: &PathBuf, is_directory: bool) -> Option<&'static str> {
    let Ok(found) = fs::metadata(file) else {
        return Some("is not there");
    };
    if is_directory {
        return (!found.is_dir()).then_some("is no directory");
    }
    if !found.is_file() {
        return Some("is no file");
    }
    let Ok(content) = fs::read(file) else {
        return Some("cannot be read");
    };
    let begin = b"-----BEGIN ";
    let has_certificate = content.windows(begin.len()).any(|window| window == begin) && !content.is_empty();
    (!has_certificate).then_some("contains no certificate (PEM)")
}

/// The daemon did not answer, and a proxy of the environment applies to the call: the message names it.
pub fn name_proxy(trouble: &mut Trouble, base_url: &str) {
    let Some(proxy) = EnvironmentProxy::of(base_url) else {
        return;
    };
    let remedy = format!(
        "if no proxy leads to the daemon, unset {} or put {} into no_proxy",
        proxy.variable,
        clean(host_of(base_url), 200)
    );
    let way = format!(" (by way of the proxy that {} names, {}", proxy.variable, clean(proxy.address(), 200));
    trouble.reason += &way;
    trouble.reason += &if trouble.outcome == Outcome::Away { format!(": {remedy})") } else { ")".to_owned() };
    trouble.remedy = remedy;
}

fn host_of(base_url: &str) -> &str {
    let rest = base_url.split_once("://").map_or(base_url, |(_, rest)| rest);
    let rest = rest.split('/').next().unwrap_or_default();
    match rest.strip_prefix('[') {
        Some(address) => address.split(']').next().unwrap_or_default(),
        None => rest.split(':').next().unwrap_or_default(),
    }
}

/// The key is valid, but not for the address of the call.
pub fn name_addresses(trouble: &mut Trouble, host: &str, address: &types::RefusedAddressBody) {
    let called_from = clean(&address.called_from, 45);
    let bound_to = address.bound_to.as_deref().map(|bound| clean(bound, 45)).filter(|bound| !bound.is_empty());
    (trouble.reason, trouble.remedy) = match bound_to {
        Some(bound_to) => (
            format!("{host} is bound to the address {bound_to}, and this call came from {called_from}"),
            format!(
                "if this is that machine, its admin types 'codex-authd hosts clear {host}' (it has moved) or 'codex-authd hosts roaming {host}' (it moves often)"
            ),
        ),
        None => (
            format!("{host} is served from certain networks only, and this call came from {called_from}"),
            format!("its admin can change them: 'codex-authd hosts networks {host} …'"),
        ),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_named_without_its_port() {
        assert_eq!(host_of("https://a.test:8443/x"), "a.test");
        assert_eq!(host_of("https://[::1]:8443"), "::1");
    }

    #[test]
    fn a_file_that_is_no_bundle_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("ca.pem");
        assert_eq!(fault_of(&file, false), Some("is not there"));
        fs::write(&file, "garbage").unwrap();
        assert_eq!(fault_of(&file, false), Some("contains no certificate (PEM)"));
        assert_eq!(fault_of(&file, true), Some("is no directory"));
        fs::write(&file, "-----BEGIN CERTIFICATE-----").unwrap();
        assert_eq!(fault_of(&file, false), None);
        assert_eq!(fault_of(&directory.path().into(), false), Some("is no file"));
    }
}
