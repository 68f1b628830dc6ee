//! Spans of what is done for an object: one for each look at it, and within it one for each call that is made.
//!
//! Without the feature `otlp` a [`Span`] is nothing, and costs nothing. With it, spans go to a collector by OTLP over HTTP, where the
//! standard variables of OpenTelemetry name one (docs/tracing.md). A collector that is slow or away holds nothing up: what cannot be
//! sent is dropped. Only the spans made here are sent, and the log's lines within them: those of other crates can hold a response.

#[cfg(feature = "otlp")]
pub use exporter::{Traces, layer};
use std::future::Future;
#[cfg(feature = "otlp")]
use std::pin::Pin;

/// What is being done, from its beginning to its end.
#[derive(Debug)]
pub struct Span(#[cfg(feature = "otlp")] tracing::Span);

#[cfg(not(feature = "otlp"))]
impl Span {
    /// A look at an object.
    #[must_use]
    pub fn of_look(_namespace: &str, _name: &str, _uid: Option<&str>) -> Self {
        Self()
    }

    /// A call of the API server or of Money-Go, within a look.
    #[must_use]
    pub fn of_call(_doing: &'static str) -> Self {
        Self()
    }

    /// The same future: what it does is part of this.
    pub fn around<F: Future>(&self, doing: F) -> F {
        doing
    }

    /// Says what came of it: a fixed word, never text from outside.
    pub fn ended(&self, _result: &'static str, _failed: bool) {}
}

#[cfg(feature = "otlp")]
impl Span {
    /// A look at an object.
    #[must_use]
    pub fn of_look(namespace: &str, name: &str, uid: Option<&str>) -> Self {
        use tracing::field::Empty;
        Self(
            tracing::info_span!(parent: None, "reconcile", namespace, name, uid, result = Empty, otel.status_code = Empty),
        )
    }

    /// A call of the API server or of Money-Go, within a look.
    #[must_use]
    pub fn of_call(doing: &'static str) -> Self {
        use tracing::field::Empty;
        Self(tracing::info_span!(
            "call",
            otel.name = doing,
            otel.kind = "client",
            result = Empty,
            otel.status_code = Empty
        ))
    }

    /// The same future: what it does is part of this.
    pub fn around<F: Future>(&self, doing: F) -> tracing::instrument::Instrumented<Pin<Box<F>>> {
        tracing::Instrument::instrument(Box::pin(doing), self.0.clone())
    }

    /// Says what came of it: a fixed word, never text from outside.
    pub fn ended(&self, result: &'static str, failed: bool) {
        self.0.record("result", result);
        self.0.record("otel.status_code", if failed { "ERROR" } else { "OK" });
    }
}

/// Whether it is a span of this module, which the log leaves out: its lines name the object as fields.
pub(crate) fn is_ours(metadata: &tracing::Metadata<'_>) -> bool {
    metadata.is_span() && metadata.target() == module_path!()
}

#[cfg(feature = "otlp")]
mod exporter {
    use std::env;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use opentelemetry::KeyValue;
    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_otlp::WithExportConfig as _;
    use opentelemetry_sdk::Resource;
    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
    use tracing::{Level, Metadata, Subscriber};
    use tracing_subscriber::filter::filter_fn;
    use tracing_subscriber::layer::Layer;
    use tracing_subscriber::registry::LookupSpan;

    /// For what is not sent yet as the process ends.
    const FLUSH_LIMIT: Duration = Duration::from_millis(500);
    const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
    const PROTOCOLS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
    const NAME: &str = env!("CARGO_PKG_NAME");

    /// The way to the collector.
    #[derive(Debug)]
    pub struct Traces(SdkTracerProvider);

    impl Traces {
        /// As the standard variables have it; `None` where they name no endpoint. To be called outside the runtime.
        ///
        /// # Errors
        /// What is wrong with the variables, for people.
        pub fn from_env() -> Result<Option<Self>, &'static str> {
            let set = |names: [&str; 2]| {
                names.into_iter().find_map(|name| env::var(name).ok().filter(|value| !value.is_empty()))
            };
            let is = |name: &str, wanted: &str| env::var(name).is_ok_and(|value| value.eq_ignore_ascii_case(wanted));
            if set(ENDPOINTS).is_none() || is("OTEL_SDK_DISABLED", "true") || is("OTEL_TRACES_EXPORTER", "none") {
                return Ok(None);
            }
            if set(PROTOCOLS).is_some_and(|protocol| protocol != "http/protobuf") {
                return Err("OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf");
            }
            let exporter = opentelemetry_otlp::SpanExporter::builder()
                .with_http()
                .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
                .build()
                .map_err(|_| "the variables OTEL_EXPORTER_OTLP_… cannot be used: look at the endpoint's URL")?;
            let provider = SdkTracerProvider::builder()
                .with_batch_exporter(Telling { exporter, is_failing: AtomicBool::new(false) })
                .with_resource(resource())
                .build();
            Ok(Some(Self(provider)))
        }

        /// Sends what is there, if that is quick, and ends.
        pub fn end(self) {
            // What could not be sent was told already, and nobody waits for the rest.
            let _ = self.0.shutdown_with_timeout(FLUSH_LIMIT);
        }
    }

    fn resource() -> Resource {
        let named = Resource::builder().build();
        let is_unnamed =
            named.get(&"service.name".into()).is_none_or(|name| name.as_str().starts_with("unknown_service"));
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let builder = Resource::builder().with_attribute(version);
        if is_unnamed { builder.with_service_name(NAME).build() } else { builder.build() }
    }

    /// Hands the spans of this crate, and its lines within them, to the collector.
    #[must_use]
    pub fn layer<S>(traces: Option<&Traces>) -> Option<impl Layer<S> + use<S>>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        traces.map(|Traces(provider)| {
            let spans = tracing_opentelemetry::layer()
                .with_tracer(provider.tracer(NAME))
                .with_location(false)
                .with_threads(false)
                .with_tracked_inactivity(false);
            spans.with_filter(filter_fn(is_exported))
        })
    }

    fn is_exported(metadata: &Metadata<'_>) -> bool {
        let is_own_line = || {
            metadata.is_event() && metadata.target().starts_with("moneygo_operator") && *metadata.level() <= Level::INFO
        };
        super::is_ours(metadata) || is_own_line()
    }

    /// Says once that the collector does not take spans, and once that it does again.
    #[derive(Debug)]
    struct Telling<E> {
        exporter: E,
        is_failing: AtomicBool,
    }

    impl<E: SpanExporter> SpanExporter for Telling<E> {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            let result = self.exporter.export(batch).await;
            match (result.is_err(), self.is_failing.swap(result.is_err(), Ordering::Relaxed)) {
                (true, false) => tracing::warn!(
                    reason = "TracesLost",
                    "the collector takes no traces: they are dropped until it does"
                ),
                (false, true) => tracing::info!(reason = "TracesTaken", "the collector takes traces again"),
                _ => {}
            }
            result
        }

        fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
            self.exporter.shutdown_with_timeout(timeout)
        }

        fn force_flush(&self) -> OTelSdkResult {
            self.exporter.force_flush()
        }

        fn set_resource(&mut self, resource: &Resource) {
            self.exporter.set_resource(resource);
        }
    }

    #[cfg(test)]
    mod tests {
        use std::sync::{Arc, Mutex};

        use tracing::{Event, span};
        use tracing_subscriber::layer::{Context, SubscriberExt as _};

        use super::*;
        use crate::traces::Span;

        #[derive(Clone, Default)]
        struct Taken(Arc<Mutex<Vec<&'static str>>>);

        impl<S: Subscriber> Layer<S> for Taken {
            fn on_new_span(&self, attributes: &span::Attributes<'_>, _: &span::Id, _: Context<'_, S>) {
                self.0.lock().unwrap().push(attributes.metadata().name());
            }

            fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
                self.0.lock().unwrap().push(event.metadata().target());
            }
        }

        #[test]
        fn only_spans_and_lines_of_our_own_are_sent() {
            let taken = Taken::default();
            let subscriber = tracing_subscriber::registry().with(taken.clone().with_filter(filter_fn(is_exported)));
            tracing::subscriber::with_default(subscriber, || {
                let _look = Span::of_look("namespace", "name", None);
                let _call = Span::of_call("read a Secret");
                tracing::info!(target: "moneygo_operator::controller", "a line");
                tracing::debug!(target: "moneygo_operator::controller", "a line that is not worth it");
                let _kubes =
                    tracing::error_span!(target: "kube_client::client::builder", "HTTP", body = "canary").entered();
                let _runtimes = tracing::info_span!(target: "kube_runtime::controller", "reconciling object").entered();
                tracing::error!(target: "kube_client::client", "canary");
                tracing::warn!(target: "hyper", "canary");
            });
            assert_eq!(*taken.0.lock().unwrap(), ["reconcile", "call", "moneygo_operator::controller"]);
        }
    }
}

#[cfg(all(test, not(feature = "otlp")))]
mod tests {
    use super::Span;

    #[test]
    fn without_the_feature_a_span_is_nothing() {
        assert_eq!(size_of::<Span>(), 0);
        let doing = async { [0_u8; 64] };
        let size = size_of_val(&doing);
        assert_eq!(size_of_val(&Span::of_call("read a Secret").around(doing)), size);
    }
}
