//! Reads the values that the daemon bakes into the bash `cdx`. Nothing of the script is run.

use codex_authd_client::Secret;

use crate::config::Values;

const BEGIN: &str = "# --- baked: begin";
const END: &str = "# --- baked: end";

/// `None`: the script has no such block, or a value that the quoting of the daemon does not make.
pub fn values(script: &[u8]) -> Option<Values> {
    let text = str::from_utf8(script).ok()?;
    let (_, rest) = text.split_once(&format!("\n{BEGIN}\n"))?;
    let mut values = Values {
        base_url: String::new(),
        api_key: Secret::default(),
        fqdn: String::new(),
        ca_pem: String::new(),
        system_ca: false,
        codex_release_url: String::new(),
        codex_release_sha256: String::new(),
        codex_npm: String::new(),
    };
    let mut rest = rest;
    while !rest.starts_with(END) {
        let (name, value) = rest.split_once('=')?;
        let (value, after) = unquoted(value)?;
        match name {
            "CDX_BASE_URL" => values.base_url = value,
            "CDX_API_KEY" => values.api_key = Secret::from(value),
            "CDX_FQDN" => values.fqdn = value,
            "CDX_CA_PEM" => values.ca_pem = value,
            "CDX_SYSTEM_CA" => values.system_ca = !value.is_empty(),
            "CDX_CODEX_RELEASE_URL" => values.codex_release_url = value,
            "CDX_CODEX_RELEASE_SHA256" => values.codex_release_sha256 = value,
            "CDX_CODEX_NPM" => values.codex_npm = value,
            other if other.starts_with("CDX_") => {}
            _ => return None,
        }
        rest = after.strip_prefix('\n')?;
    }
    values.check().ok().map(|()| values)
}

/// A word in single quotes; a quote in it is `'\''`.
fn unquoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut rest = text.strip_prefix('\'')?;
    loop {
        let (part, after) = rest.split_once('\'')?;
        value.push_str(part);
        match after.strip_prefix("\\''") {
            Some(more) => {
                value.push('\'');
                rest = more;
            }
            None => return Some((value, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = "#!/usr/bin/env bash\nx=1\n# --- baked: begin\nCDX_BASE_URL='https://a.test'\nCDX_API_KEY='k'\nCDX_CA_PEM='a\nit'\\''s\n# --- baked: end\n'\nCDX_SYSTEM_CA='1'\nCDX_NEW='$(x)'\n# --- baked: end\nmain\n";

    #[test]
    fn values_are_read_as_bash_reads_them() {
        let values = values(SCRIPT.as_bytes()).unwrap();
        assert_eq!((values.base_url.as_str(), values.api_key.expose()), ("https://a.test", "k"));
        assert_eq!((values.ca_pem.as_str(), values.system_ca), ("a\nit's\n# --- baked: end\n", true));
    }

    #[test]
    fn another_script_has_no_values() {
        for (before, after) in [
            ("# --- baked: begin", "# ---"),
            ("CDX_API_KEY='k'", "CDX_API_KEY=$(k)"),
            ("CDX_API_KEY='k'", "CDX_API_KEY='k'; rm x"),
            ("CDX_API_KEY='k'", "PATH='k'"),
            ("CDX_API_KEY='k'", "CDX_API_KEY=''"),
            ("\nmain", "x"),
            ("https:", "file:"),
        ] {
            let script = SCRIPT.replace(before, after);
            let cut = if after == "x" { &script[..script.len() - 30] } else { &script };
            assert!(values(cut.as_bytes()).is_none(), "{before} {after}");
        }
    }
}
