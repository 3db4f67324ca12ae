//! Which refusals an operation can answer with. A debug build checks each answer against the document. Handlers share one type of refusal, which has all of them.

use serde_json::Value;

use super::Audience;

/// Operations that can answer 404, 409 or 422 for a reason of their own: beside what their parameters and their body
/// bring with them.
const OWN: &[(&str, &[u16])] = &[
    ("abortMigration", &[409]),
    ("activateAuthority", &[409]),
    ("addUser", &[409]),
    ("beginOidcSignIn", &[404, 422]),
    ("closeInsecureWindow", &[422]),
    ("diffAuth", &[404]),
    ("downloadWrapper", &[404]),
    ("examineRunner", &[409]),
    ("finishOidcSignIn", &[404]),
    ("getAuthDocument", &[404]),
    ("install", &[410]),
    ("issueCertificate", &[409]),
    ("linkIdentity", &[404, 409]),
    ("listAudit", &[422]),
    ("openInsecureWindow", &[422]),
    ("prepareAuthority", &[409]),
    ("registerHost", &[409]),
    ("registerOwnHost", &[409]),
    ("renewCertificate", &[409]),
    ("restoreHost", &[409]),
    ("retireAuthority", &[409]),
    ("revokeCertificate", &[409]),
    ("rollBackAuth", &[404, 409]),
    ("runRunner", &[404, 409]),
    ("showAuth", &[404]),
    ("startInstall", &[410]),
    ("syncAuth", &[409]),
    ("syncAuthLines", &[409]),
    ("unlinkIdentity", &[404]),
    ("uploadAuth", &[404, 409]),
    ("verifyAudit", &[422]),
];

/// Removes the statuses that cannot come.
pub(super) fn keep_real(method: &str, audience: Audience, operation: &mut Value) {
    let id = operation["operationId"].as_str().unwrap_or_default().to_owned();
    let own = OWN.iter().find(|(name, _)| *name == id).map_or(&[][..], |(_, own)| own);
    let takes_json = operation["requestBody"]["content"].get("application/json").is_some();
    let in_path = |parameter: &Value| parameter["in"] == "path";
    let has_path_parameter = operation["parameters"].as_array().is_some_and(|all| all.iter().any(in_path));
    let is_cursor = |parameter: &Value| parameter["name"] == "cursor";
    let has_cursor = operation["parameters"].as_array().is_some_and(|all| all.iter().any(is_cursor));
    let writes = method != "get";
    let is_real = |status: u16| match status {
        // An unknown or unreadable parameter, or a forwarding header that names nobody; a limit; a fault.
        ..400 | 400 | 429 | 500 => true,
        401 => audience != Audience::Anybody && audience != Audience::AnybodyAnywhere || id == "signIn",
        403 => {
            audience != Audience::Anybody && (audience != Audience::AnybodyAnywhere || writes || id.contains("Oidc"))
        }
        404 => has_path_parameter || own.contains(&status),
        413 | 415 => takes_json,
        422 => takes_json || has_cursor || own.contains(&status),
        503 => id != "getHealth",
        _ => own.contains(&status),
    };
    if let Some(responses) = operation.get_mut("responses").and_then(Value::as_object_mut) {
        responses.retain(|status, _| status.parse().map_or(true, is_real));
    }
}

/// Whether the document has this status for this operation.
#[cfg(debug_assertions)]
pub fn is_documented(operation: &str, status: u16) -> bool {
    use std::collections::HashSet;
    use std::sync::LazyLock;

    static KNOWN: LazyLock<HashSet<(String, u16)>> = LazyLock::new(|| {
        let document: Value = serde_json::from_str(&crate::api::document()).unwrap_or_default();
        let items = document["paths"].as_object().into_iter().flatten();
        let operations = items.flat_map(|(_, item)| item.as_object().into_iter().flatten().map(|(_, it)| it));
        let statuses = operations.flat_map(|operation| {
            let id = operation["operationId"].as_str().unwrap_or_default();
            let statuses = operation["responses"].as_object().into_iter().flatten();
            statuses.filter_map(move |(status, _)| Some((id.to_owned(), status.parse().ok()?)))
        });
        statuses.collect()
    });
    operation.starts_with("getDocument") || KNOWN.contains(&(operation.to_owned(), status))
}
