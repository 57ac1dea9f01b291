//! The page of figures: `GET /metrics` in the text format that Prometheus reads.
//!
//! A server for one kind of request, on an address of its own, which tells no secret and changes nothing. What a client
//! may take is bounded: one request a connection, [`REQUEST_BYTES`] of it, [`PATIENCE`], and [`CONNECTIONS`] at a time.

use std::fmt::Write as _;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use quarry_contract::{Metric, MetricKind, MetricValue};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// The longest request that is read, in bytes.
const REQUEST_BYTES: usize = 8 << 10;

/// How long a request and its answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connections that are served at a time; others wait.
const CONNECTIONS: usize = 8;

/// Answers requests until the agent stops.
pub(super) async fn serve(
    listener: TcpListener,
    stopping: CancellationToken,
    figures: impl Fn() -> Vec<Metric> + Send + Sync + 'static,
) {
    let figures = Arc::new(figures);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let place = Arc::clone(&places).acquire_owned();
        let accepted = async {
            let place = place.await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = stopping.cancelled() => return,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let figures = Arc::clone(&figures);
                tokio::spawn(async move {
                    let answered = tokio::time::timeout(PATIENCE, answer(stream, &*figures)).await;
                    if !matches!(answered, Ok(Ok(()))) {
                        debug!(%peer, "a request for figures was not answered");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                // No descriptors left, most likely.
                warn!(%error, "accepting a request for figures failed");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn answer(mut stream: TcpStream, figures: &(dyn Fn() -> Vec<Metric> + Send + Sync)) -> io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        if request.len() > REQUEST_BYTES || stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let (status, body) = match line.split(|byte| *byte == b' ').take(2).collect::<Vec<_>>()[..] {
        [b"GET", b"/metrics"] => ("200 OK", render(&figures())),
        [b"GET", _] => ("404 Not Found", "the figures are at /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", "GET /metrics\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

/// Writes figures in Prometheus' text format, version 0.0.4.
fn render(metrics: &[Metric]) -> String {
    let mut text = String::new();
    for metric in metrics {
        // Writing to a String cannot fail.
        let _ = write_metric(&mut text, metric);
    }
    text
}

fn write_metric(out: &mut String, metric: &Metric) -> std::fmt::Result {
    let Metric { name, help, kind, .. } = metric;
    let kind = match kind {
        MetricKind::Counter => "counter",
        MetricKind::Gauge => "gauge",
        MetricKind::Histogram => "histogram",
    };
    writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}")?;
    for sample in &metric.samples {
        let labels = |more: Option<(&str, String)>| {
            let own = sample
                .labels
                .iter()
                .map(|(key, value)| format!("{key}=\"{value}\""));
            let more = more.map(|(key, value)| format!("{key}=\"{value}\""));
            let all: Vec<String> = own.chain(more).collect();
            match all.is_empty() {
                true => String::new(),
                false => format!("{{{}}}", all.join(",")),
            }
        };
        match &sample.value {
            MetricValue::Number(value) => writeln!(out, "{name}{} {value}", labels(None))?,
            MetricValue::Distribution { buckets, beyond, sum } => {
                let mut below = 0;
                for (bound, count) in buckets {
                    below += count;
                    writeln!(
                        out,
                        "{name}_bucket{} {below}",
                        labels(Some(("le", bound.to_string())))
                    )?;
                }
                let all = below + beyond;
                writeln!(
                    out,
                    "{name}_bucket{} {all}",
                    labels(Some(("le", "+Inf".to_owned())))
                )?;
                writeln!(out, "{name}_sum{} {sum}", labels(None))?;
                writeln!(out, "{name}_count{} {all}", labels(None))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use quarry_contract::Sample;

    use super::*;

    fn figures() -> Vec<Metric> {
        vec![
            Metric::single("quarry_test_open", "What is open.", MetricKind::Gauge, 7),
            Metric {
                name: "quarry_test_seconds",
                help: "How long it takes.",
                kind: MetricKind::Histogram,
                samples: vec![Sample {
                    labels: vec![("op", "read".into())],
                    value: MetricValue::Distribution {
                        buckets: vec![(0.001, 2), (0.5, 1)],
                        beyond: 4,
                        sum: 9.25,
                    },
                }],
            },
        ]
    }

    const PAGE: &str = "\
# HELP quarry_test_open What is open.
# TYPE quarry_test_open gauge
quarry_test_open 7
# HELP quarry_test_seconds How long it takes.
# TYPE quarry_test_seconds histogram
quarry_test_seconds_bucket{op=\"read\",le=\"0.001\"} 2
quarry_test_seconds_bucket{op=\"read\",le=\"0.5\"} 3
quarry_test_seconds_bucket{op=\"read\",le=\"+Inf\"} 7
quarry_test_seconds_sum{op=\"read\"} 9.25
quarry_test_seconds_count{op=\"read\"} 7
";

    #[tokio::test]
    async fn figures_are_served_at_their_path_and_nothing_else_is() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stopping = CancellationToken::new();
        let server = tokio::spawn(serve(listener, stopping.clone(), figures));
        for (request, status) in [
            ("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "200 OK"),
            ("GET / HTTP/1.0\r\n\r\n", "404 Not Found"),
            ("POST /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
            ("rubbish\r\n\r\n", "405 Method Not Allowed"),
        ] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
            assert_eq!(body == PAGE, status == "200 OK", "{answer}");
        }
        // One that sends without end is let go.
        let mut endless = TcpStream::connect(address).await.unwrap();
        let junk = vec![b'x'; 64 << 10];
        while endless.write_all(&junk).await.is_ok() {}
        stopping.cancel();
        server.await.unwrap();
    }
}
