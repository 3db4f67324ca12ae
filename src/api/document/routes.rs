//! The operations by path, for what the framework does not do: refuse unknown query parameters, and name the methods
//! that a path has.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use poem::Request;
use poem::http::Method;
use poem_openapi::OpenApi as _;
use poem_openapi::registry::{MetaApi, MetaOperation, MetaParamIn};

use super::super::errors::Failure;
use super::super::{AdminApis, HostApis, PeopleApis};
use crate::metrics::Listener;

/// The provider adds parameters of its own to the address that the browser comes back to.
const TAKES_ANY: &str = "finishOidcSignIn";

struct Route {
    on_hosts: bool,
    on_admin: bool,
    segments: Vec<String>,
    method: Method,
    /// `None`: any.
    parameters: Option<BTreeSet<String>>,
}

static ROUTES: LazyLock<Vec<Route>> = LazyLock::new(|| {
    let known = [(HostApis::meta(), true, false), (AdminApis::meta(), false, true), (PeopleApis::meta(), true, true)];
    known.iter().flat_map(|(apis, on_hosts, on_admin)| routes_of(apis, *on_hosts, *on_admin)).collect()
});

fn routes_of(apis: &[MetaApi], on_hosts: bool, on_admin: bool) -> Vec<Route> {
    let paths = apis.iter().flat_map(|api| &api.paths);
    let routes = paths.flat_map(|path| path.operations.iter().map(|operation| (&path.path, operation)));
    routes.map(|(path, operation)| Route::new(path, operation, on_hosts, on_admin)).collect()
}

impl Route {
    fn new(path: &str, operation: &MetaOperation, on_hosts: bool, on_admin: bool) -> Self {
        let in_query = operation.params.iter().filter(|parameter| parameter.in_type == MetaParamIn::Query);
        let parameters = in_query.map(|parameter| parameter.name.clone()).collect();
        // Both listeners have the operations of health.
        let is_health = matches!(path, "/healthz" | "/readyz");
        Self {
            on_hosts,
            on_admin: on_admin || is_health,
            segments: segments(path).map(str::to_owned).collect(),
            method: operation.method.clone(),
            parameters: (operation.operation_id != Some(TAKES_ANY)).then_some(parameters),
        }
    }

    fn has(&self, path: &str) -> bool {
        let mut given = segments(path);
        self.segments.iter().all(|own| given.next().is_some_and(|given| is_variable(own) || own == given))
            && given.next().is_none()
    }

    /// How many segments are fixed: `/hosts/removed` goes before `/hosts/{id}`.
    fn fixed(&self) -> usize {
        self.segments.iter().filter(|segment| !is_variable(segment)).count()
    }
}

fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|segment| !segment.is_empty())
}

fn is_variable(segment: &str) -> bool {
    segment.starts_with([':', '{'])
}

/// The routes of a path. Only those with the most fixed segments count.
fn routes_at(path: &str) -> Vec<&'static Route> {
    let mut found: Vec<&Route> = ROUTES.iter().filter(|route| route.has(path)).collect();
    let fixed = found.iter().map(|route| route.fixed()).max();
    found.retain(|route| Some(route.fixed()) == fixed);
    found
}

/// The methods that a path has on a listener, for `Allow`. `None`: no operation has this path there.
pub fn allowed(path: &str, listener: Listener) -> Option<String> {
    let is_there = |route: &&&Route| match listener {
        Listener::Hosts => route.on_hosts,
        Listener::Admin | Listener::Control => route.on_admin,
    };
    let routes = routes_at(path);
    let methods: BTreeSet<&str> = routes.iter().filter(is_there).map(|route| route.method.as_str()).collect();
    (!methods.is_empty()).then(|| methods.into_iter().collect::<Vec<_>>().join(", "))
}

/// Refuses a query parameter that the operation does not have. A misspelt one would be ignored, and the answer would be
/// that to another question.
pub fn refuse_unknown_parameters(request: &Request) -> Result<(), Failure> {
    let Some(query) = request.uri().query().filter(|query| !query.is_empty()) else { return Ok(()) };
    let routes = routes_at(request.uri().path());
    let Some(route) = routes.into_iter().find(|route| route.method == request.method()) else { return Ok(()) };
    let Some(known) = &route.parameters else { return Ok(()) };
    for (name, _) in form_urlencoded::parse(query.as_bytes()) {
        if !name.is_empty() && !known.contains(&*name) {
            let known = match known.iter().map(String::as_str).collect::<Vec<_>>().join(", ") {
                none if none.is_empty() => "this operation has no parameters".to_owned(),
                some => format!("this operation has {some}"),
            };
            let name: String = name.chars().filter(|letter| !letter.is_control()).take(80).collect();
            return Err(Failure::bad_parameter(&name, &format!("it is unknown; {known}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(method: Method, uri: &str) -> Result<(), Failure> {
        refuse_unknown_parameters(&Request::builder().method(method).uri(uri.parse().unwrap()).finish())
    }

    #[test]
    fn only_known_parameters_are_taken() {
        for uri in
            ["/admin/hosts?limit=1&search=%20x", "/admin/hosts?", "/admin/hosts?&limit=1&", "/admin/audit?alarms=1"]
        {
            assert!(ask(Method::GET, uri).is_ok(), "{uri}");
        }
        for uri in ["/admin/hosts?limt=1", "/admin/hosts/7?limit=1", "/admin/hosts/removed?search=x", "/auth?force=1"] {
            let method = if uri.starts_with("/auth") { Method::POST } else { Method::GET };
            assert!(ask(method, uri).is_err(), "{uri}");
        }
        assert!(ask(Method::DELETE, "/auth?force=1").is_ok());
        assert!(ask(Method::GET, "/auth/oidc/callback?code=x&session_state=y").is_ok(), "a provider adds its own");
        assert!(ask(Method::GET, "/hosts?page=2").is_ok(), "a page of the dashboard");
    }

    #[test]
    fn a_path_names_its_methods() {
        let allowed_to_admins = |path| allowed(path, Listener::Admin);
        assert_eq!(allowed("/auth", Listener::Hosts).as_deref(), Some("DELETE, POST"));
        assert_eq!(allowed_to_admins("/auth"), None);
        assert_eq!(allowed_to_admins("/admin/hosts/7/").as_deref(), Some("DELETE, GET"));
        assert_eq!(allowed("/admin/hosts/7", Listener::Hosts), None);
        assert_eq!(allowed_to_admins("/admin/hosts/removed").as_deref(), Some("GET"));
        assert_eq!(allowed_to_admins("/admin/hosts/7/nothing"), None);
        assert_eq!(allowed_to_admins("/healthz").as_deref(), Some("GET"));
    }
}
