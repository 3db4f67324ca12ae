//! `GET /metrics`, and the measurement of every request.

use std::time::Instant;

use poem::{IntoResponse, Response};
use poem_openapi::payload::Payload;
use poem_openapi::registry::MetaSchemaRef;
use poem_openapi::types::Type;
use poem_openapi::{ApiResponse, OpenApi, OperationId};

use super::Tag;
use super::area::Area;
#[cfg(debug_assertions)]
use super::document::statuses;
use super::errors::Failure;
use super::guards::Viewer;
use crate::metrics::{InFlight, Listener, Metrics};
use crate::service::Status;

pub struct MetricsApi;

#[OpenApi(tag = "Tag::Health")]
impl MetricsApi {
    /// What is counted and measured
    ///
    /// In the Prometheus text format, version 0.0.4. Counters begin at zero with the process.
    #[oai(path = "/metrics", method = "get", operation_id = "getMetrics")]
    async fn metrics(&self, status: Area<'_, Status>, _viewer: Viewer) -> Result<MetricsAnswer, Failure> {
        Ok(MetricsAnswer::Done(MetricsText(status.metrics_text().await?)))
    }
}

#[derive(ApiResponse)]
enum MetricsAnswer {
    /// Samples, each family with its HELP and TYPE.
    #[oai(status = 200)]
    Done(MetricsText),
}

struct MetricsText(String);

impl Payload for MetricsText {
    const CONTENT_TYPE: &'static str = "text/plain";

    fn schema_ref() -> MetaSchemaRef {
        String::schema_ref()
    }
}

impl IntoResponse for MetricsText {
    fn into_response(self) -> Response {
        Response::builder().content_type("text/plain; version=0.0.4; charset=utf-8").body(self.0)
    }
}

/// A request that is being answered. [`Self::end`] counts it.
pub struct Measured<'a> {
    metrics: &'a Metrics,
    listener: Listener,
    begun: Instant,
    _in_flight: InFlight<'a>,
}

impl<'a> Measured<'a> {
    pub fn begin(metrics: &'a Metrics, listener: Listener) -> Self {
        Self { metrics, listener, begun: Instant::now(), _in_flight: metrics.begin() }
    }

    /// `operation`: the operation that the router found. `None`: no operation matched.
    pub fn end(self, operation: Option<OperationId>, answer: &Response) {
        let operation = operation.map(|OperationId(name)| name);
        #[cfg(debug_assertions)]
        if let Some(name) = operation {
            let status = answer.status().as_u16();
            assert!(
                statuses::is_documented(name, status),
                "{name} answered {status}, which the document does not have"
            );
        }
        self.metrics.observe(self.listener, operation, answer.status().as_u16(), self.begun.elapsed());
    }
}
