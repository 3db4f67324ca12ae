//! The keys of the configuration that hold URLs, and what a URL in the configuration may look like.
//!
//! Only `database.url` may hold a user and a password: all other URLs appear in logs, on pages and in scripts of hosts.
//! A message never quotes a value, because it may hold a secret.

use super::Config;

type CheckedUrl = std::result::Result<(), (&'static str, &'static str)>;

/// Characters that are special within double quotes of a shell.
const SPECIAL: [char; 5] = ['"', '$', '`', '\\', '!'];

/// The first key that is refused, and why.
pub(super) fn check(config: &Config) -> CheckedUrl {
    let Config { public_base_url, install, upstream, oidc, admin, .. } = config;
    for (key, url) in [
        ("public_base_url", public_base_url),
        ("install.codex_release_url", &install.codex_release_url),
        ("upstream.token_url", &upstream.token_url),
        ("upstream.usage_url", &upstream.usage_url),
        ("upstream.releases_url", &upstream.releases_url),
        ("upstream.pricing_url", &upstream.pricing_url),
    ] {
        if !url.is_empty() && !is_url(url) {
            return Err((key, "must be an http:// or https:// URL without spaces or control characters"));
        }
        refuse_credentials(key, url)?;
    }
    refuse_credentials("oidc.issuer", &oidc.issuer)?;
    refuse_credentials("oidc.redirect_uri", &oidc.redirect_uri)?;
    if public_base_url.ends_with('/') || public_base_url.contains(['?', '#']) {
        return Err(("public_base_url", "must not end with '/' and has no query"));
    }
    // It is between double quotes in the command that people paste.
    if public_base_url.contains(SPECIAL) {
        return Err(("public_base_url", "must not hold characters that are special to a shell: \" $ ` \\ !"));
    }
    let is_origin = |origin: &String| origin.starts_with("https://") && origin_of(origin).as_ref() == Some(origin);
    if !admin.origins.iter().all(is_origin) {
        return Err((
            "admin.origins",
            "each entry must be https://NAME or https://NAME:PORT in lower case, without a path; leave out port 443",
        ));
    }
    check_release(&install.codex_release_url, &install.codex_release_sha256)
}

/// Hosts install the archive at this URL. Over plain HTTP, anybody on the network path can replace it.
fn check_release(url: &str, digests: &[String]) -> CheckedUrl {
    const DIGESTS: &str = "install.codex_release_sha256";
    let mut targets = Vec::new();
    for entry in digests {
        let pair = entry.split_once('=').filter(|(target, digest)| is_target(target) && is_sha256(digest));
        let Some((target, _)) = pair else {
            return Err((
                DIGESTS,
                "each entry must be TARGET=DIGEST, such as x86_64-unknown-linux-musl= and 64 lower-case hex digits",
            ));
        };
        if targets.contains(&target) {
            return Err((DIGESTS, "names a target twice"));
        }
        targets.push(target);
    }
    if !targets.is_empty() && url.contains("{version}") {
        return Err((
            DIGESTS,
            "cannot go with {version} in install.codex_release_url: a digest is that of one archive; name the version",
        ));
    }
    if targets.len() > 1 && !url.contains("{target}") {
        return Err((DIGESTS, "names several targets, but install.codex_release_url has no {target}"));
    }
    if url.starts_with("http://") && targets.is_empty() {
        return Err((
            "install.codex_release_url",
            "must be https://; http:// is allowed with install.codex_release_sha256 for each target",
        ));
    }
    Ok(())
}

fn is_target(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn refuse_credentials(key: &'static str, url: &str) -> CheckedUrl {
    let authority = url.split_once("://").map_or("", |(_, rest)| rest);
    let authority = authority.split(['/', '?', '#', '\\']).next().unwrap_or_default();
    if authority.contains('@') {
        return Err((key, "must not hold credentials (user:password@): they would appear in logs, pages and scripts"));
    }
    Ok(())
}

pub(super) fn is_url(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'))
        && text.chars().all(|c| !c.is_whitespace() && !c.is_control())
}

/// Scheme, name and port of a URL, as a browser writes an origin. `None`: not a URL with a host.
pub fn origin_of(url: &str) -> Option<String> {
    let origin = reqwest::Url::parse(url).ok()?.origin();
    origin.is_tuple().then(|| origin.ascii_serialization())
}

#[cfg(test)]
mod tests {
    use super::super::load_text;

    fn refusal(text: &str) -> String {
        load_text(text, []).unwrap_err().to_string()
    }

    #[test]
    fn no_url_but_the_databases_holds_credentials() {
        for key in [
            "public_base_url",
            "install.codex_release_url",
            "upstream.token_url",
            "upstream.usage_url",
            "upstream.releases_url",
            "upstream.pricing_url",
            "oidc.redirect_uri",
            "oidc.issuer",
        ] {
            let (section, name) = key.rsplit_once('.').map_or(("", key), |(section, name)| (section, name));
            let head = if section.is_empty() { String::new() } else { format!("[{section}]\n") };
            let more = match key {
                "oidc.redirect_uri" => "issuer = \"https://id.test\"\nclient_id = \"c\"\n",
                "oidc.issuer" => "client_id = \"c\"\n",
                _ => "",
            };
            for url in
                ["https://ada:canary@x.test/p", "https://canary@x.test", "https://@x.test", "https://ada:canary@"]
            {
                let error = refusal(&format!("{head}{more}{name} = \"{url}\"\n"));
                assert!(error.contains(&format!(" {key}: ")) && !error.contains("canary"), "{error}");
            }
            // An `@` elsewhere is part of a path or a query.
            if !key.starts_with("oidc") && key != "public_base_url" {
                load_text(&format!("{head}{name} = \"https://x.test/@scope/?a=b@c\"\n"), []).unwrap();
            }
        }
        load_text("[database]\nurl = \"mysql://u:p@h/d\"", []).unwrap();
    }

    #[test]
    fn a_release_comes_by_https_or_with_its_digest() {
        let digest = "ab".repeat(32);
        let load = |url: &str, digests: &[String]| {
            load_text(&format!("[install]\ncodex_release_url = {url:?}\ncodex_release_sha256 = {digests:?}"), [])
        };
        let one = [format!("x86_64-unknown-linux-musl={digest}")];
        let two = [one[0].clone(), format!("aarch64-apple-darwin={digest}")];
        load("https://x.test/{version}/{target}.tar.gz", &[]).unwrap();
        load("http://x.test/1/{target}.tar.gz", &one).unwrap();
        load("https://x.test/1/{target}.tar.gz", &two).unwrap();
        let url = "install.codex_release_url";
        let digests = "install.codex_release_sha256";
        let refused: [(&str, &[String], &str, &str); 8] = [
            ("http://x.test/{target}.tar.gz", &[], url, "must be https://"),
            ("http://x.test/{version}.tar.gz", &one, digests, "{version}"),
            ("https://x.test/a.tar.gz", &two, digests, "no {target}"),
            ("https://x.test/{target}", &[one[0].clone(), one[0].clone()], digests, "twice"),
            ("https://x.test/{target}", std::slice::from_ref(&digest), digests, "TARGET=DIGEST"),
            ("https://x.test/{target}", &[format!("a b={digest}")], digests, "TARGET=DIGEST"),
            ("https://x.test/{target}", &[format!("a={}", &digest[1..])], digests, "TARGET=DIGEST"),
            ("https://x.test/{target}", &[format!("a={}", digest.to_uppercase())], digests, "TARGET=DIGEST"),
        ];
        for (given, entries, key, wanted) in refused {
            let error = load(given, entries).unwrap_err().to_string();
            assert!(error.contains(&format!(" {key}: ")) && error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn origins_are_written_as_browsers_write_them() {
        load_text("[admin]\norigins = [\"https://a.test\", \"https://[::1]:9443\"]", []).unwrap();
        for bad in [
            "https://a.test/",
            "a.test",
            "https://A.test",
            "https://a.test:443",
            "https://u@a.test",
            "http://a.test",
            "*",
            "null",
        ] {
            assert!(refusal(&format!("[admin]\norigins = [{bad:?}]")).contains("admin.origins"), "{bad}");
        }
    }
}
