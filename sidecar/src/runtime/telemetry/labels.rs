//! The job on every log line: its `name` and `job_id`, from the moment that the config is known.
//!
//! Not a span: a span is on the lines of its own tasks alone, and is filtered with the level of its target.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use serde_json::Value;
use tracing::{Event, Subscriber};
use tracing_subscriber::{
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{Format, Full, Json, Writer},
    },
    registry::LookupSpan,
};

/// The job's labels, none until [`set`](Self::set). Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct JobLabels(Arc<OnceLock<Job>>);

#[derive(Debug)]
struct Job {
    name: String,
    job_id: Option<String>,
}

impl JobLabels {
    /// Sets the labels; those of the first call stay.
    pub(super) fn set(&self, name: &str, job_id: Option<&str>) {
        let job = Job { name: name.to_owned(), job_id: job_id.map(shortened) };
        self.0.get_or_init(|| job);
    }

    /// Formats lines as `inner` does, with the labels as their last fields.
    pub(super) fn on<F: LineFormat>(&self, inner: F) -> Labelled<F> {
        Labelled { inner, labels: self.clone() }
    }
}

/// The job's id for logs, metrics and `closed`, which would not hold one of any length.
pub(crate) fn shortened(job_id: &str) -> String {
    job_id.chars().take(MAX_JOB_ID).collect()
}

/// A format of lines to which fields can be added.
pub(super) trait LineFormat {
    /// What a line ends with, behind its last field.
    const END: &'static str;

    fn write_field(line: &mut impl fmt::Write, name: &str, value: &str) -> fmt::Result;
}

impl LineFormat for Format<Json> {
    const END: &'static str = "}\n";

    fn write_field(line: &mut impl fmt::Write, name: &str, value: &str) -> fmt::Result {
        write!(line, ",\"{name}\":{}", Value::from(value))
    }
}

impl LineFormat for Format<Full> {
    const END: &'static str = "\n";

    fn write_field(line: &mut impl fmt::Write, name: &str, value: &str) -> fmt::Result {
        write!(line, " {name}={value:?}")
    }
}

pub(super) struct Labelled<F> {
    inner: F,
    labels: JobLabels,
}

impl<F, S, N> FormatEvent<S, N> for Labelled<F>
where
    F: FormatEvent<S, N> + LineFormat,
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let Some(Job { name, job_id }) = self.labels.0.get() else {
            return self.inner.format_event(context, writer, event);
        };
        let mut line = String::new();
        self.inner.format_event(context, Writer::new(&mut line), event)?;
        if line.ends_with(F::END) {
            line.truncate(line.len() - F::END.len());
            F::write_field(&mut line, "name", name)?;
            if let Some(job_id) = job_id {
                F::write_field(&mut line, "job_id", job_id)?;
            }
            line.push_str(F::END);
        }
        writer.write_str(&line)
    }
}

/// Characters of a job's id; a session's `Reason` holds as many.
const MAX_JOB_ID: usize = 256;

#[cfg(test)]
mod tests {
    use std::io;

    use parking_lot::Mutex;
    use tracing::{info, subscriber::with_default};
    use tracing_subscriber::{
        fmt::{
            MakeWriter, format,
            format::{DefaultFields, JsonFields},
            layer,
        },
        prelude::*,
        registry,
    };

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Lines {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    impl Lines {
        fn take(&self) -> String {
            String::from_utf8(std::mem::take(&mut *self.0.lock())).unwrap()
        }
    }

    #[test]
    fn labels_are_the_last_fields_of_every_line_from_their_setting_on() {
        let (lines, labels) = (Lines::default(), JobLabels::default());
        let json = format().json().flatten_event(true);
        let json = layer().fmt_fields(JsonFields::new()).event_format(labels.on(json));
        with_default(registry().with(json.with_writer(lines.clone())), || {
            info!("before");
            assert!(!lines.take().contains("job_id"));
            labels.set("a \"test\"", Some("4711\n{"));
            info!(port = 1, "after");
            let line = lines.take();
            assert_eq!(line.matches('\n').count(), 1, "{line}");
            let parsed: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(parsed["name"], "a \"test\"", "{line}");
            assert_eq!((&parsed["job_id"], &parsed["port"]), (&"4711\n{".into(), &1.into()));
        });
        let text = format().with_ansi(false);
        let text = layer().fmt_fields(DefaultFields::new()).event_format(labels.on(text));
        with_default(registry().with(text.with_writer(lines.clone())), || {
            info!(port = 1, "after");
            let line = lines.take();
            let end = " after port=1 name=\"a \\\"test\\\"\" job_id=\"4711\\n{\"\n";
            assert!(line.ends_with(end), "{line}");
        });
    }

    #[test]
    fn id_of_any_length_is_cut() {
        let (lines, labels) = (Lines::default(), JobLabels::default());
        labels.set("test", Some(&"語".repeat(100_000)));
        let text = layer().event_format(labels.on(format().with_ansi(false)));
        with_default(registry().with(text.with_writer(lines.clone())), || info!("x"));
        assert_eq!(lines.take().matches('語').count(), MAX_JOB_ID);
    }

    #[test]
    fn job_without_an_id_has_its_name_alone() {
        let (lines, labels) = (Lines::default(), JobLabels::default());
        labels.set("test", None);
        let text = layer().event_format(labels.on(format().with_ansi(false)));
        with_default(registry().with(text.with_writer(lines.clone())), || info!("x"));
        assert!(lines.take().ends_with(" x name=\"test\"\n"));
    }
}
