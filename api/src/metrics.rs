//! `GET /metrics`: what hosts have counted of their networks, in Prometheus' text form (exposition format 0.0.4), for
//! administrators. The token is in `X-Auth-Token`, or a bearer's as Prometheus sends it (`authorization.credentials`).
//!
//! Hosts are asked when somebody asks here; nothing is kept in between. Counters begin anew with what they are of, which
//! is what Prometheus expects of counters.

use std::collections::BTreeMap;
use std::fmt::Write;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use control::agent::figures::{Count, HostTraffic, LinkCounts, QueueCounts};

use crate::context::{AppState, Authenticated};
use crate::error::Fault;

const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// See the module.
pub(crate) async fn show(State(state): State<AppState>, request: Request) -> Result<Response, Fault> {
    let (mut parts, _) = request.into_parts();
    let bearer = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = bearer.and_then(|value| value.strip_prefix("Bearer "));
    if let Some(token) = bearer.and_then(|token| HeaderValue::from_str(token.trim()).ok()) {
        parts.headers.entry("x-auth-token").or_insert(token);
    }
    let Authenticated(caller) = Authenticated::from_request_parts(&mut parts, &state).await?;
    let text = text(&state.control.traffic(&caller).await?);
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
}

/// A line's labels and its value.
type Sample = (Vec<(&'static str, String)>, u64);

/// Families of metrics in the making.
#[derive(Default)]
struct Families(BTreeMap<&'static str, (&'static str, Vec<Sample>)>);

impl Families {
    fn add(&mut self, name: &'static str, help: &'static str, labels: &[(&'static str, &str)], value: u64) {
        let labels = labels.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        self.0.entry(name).or_insert_with(|| (help, Vec::new())).1.push((labels, value));
    }

    fn written(&self) -> String {
        let mut text = String::new();
        for (name, (help, samples)) in &self.0 {
            let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in samples {
                let labels: Vec<String> =
                    labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
                let _ = writeln!(text, "{name}{{{}}} {value}", labels.join(","));
            }
        }
        text
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn text(hosts: &BTreeMap<String, Option<HostTraffic>>) -> String {
    let mut families = Families::default();
    for (host, counted) in hosts {
        let answers = u64::from(counted.is_some());
        families.add(
            "wisp_host_answers",
            "Whether the host tells what it has counted.",
            &[("host", host)],
            answers,
        );
        for (port, counts) in counted.iter().flat_map(|counted| &counted.ports) {
            // What the host takes from a tap is what the port's guest sends.
            let guest = LinkCounts {
                received: counts.sent,
                sent: counts.received,
                receive_errors: counts.send_errors,
                send_errors: counts.receive_errors,
                receive_drops: counts.send_drops,
                send_drops: counts.receive_drops,
            };
            add_link(&mut families, &PORT, &[("host", host), ("port", port)], &guest);
        }
        for (port, pairs) in counted.iter().flat_map(|counted| &counted.queues) {
            for (number, pair) in pairs.iter().enumerate() {
                let number = number.to_string();
                let labels = [("host", host.as_str()), ("port", port), ("queue", &number)];
                add_queue(&mut families, &QUEUE_RECEIVED, &labels, pair.receive);
                add_queue(&mut families, &QUEUE_SENT, &labels, pair.transmit);
            }
        }
        for (router, counted) in counted.iter().flat_map(|counted| &counted.routers) {
            for (port, counts) in &counted.ports {
                let labels = [("host", host.as_str()), ("port", port), ("router", router)];
                add_link(&mut families, &ROUTER_PORT, &labels, counts);
            }
            for (address, (inward, outward)) in &counted.floating {
                let address = address.to_string();
                let labels = [("address", address.as_str()), ("host", host), ("router", router)];
                add_count(&mut families, &FLOATING_RECEIVED, &labels, *inward);
                add_count(&mut families, &FLOATING_SENT, &labels, *outward);
            }
            for (label, count) in &counted.labels {
                let labels = [("host", host.as_str()), ("label", label), ("router", router)];
                add_count(&mut families, &LABEL, &labels, *count);
            }
        }
    }
    families.written()
}

/// Names and words for packets and bytes.
type Pair = [(&'static str, &'static str); 2];

const LABEL: Pair = [
    ("wisp_metering_label_packets_total", "Packets that a router passed on and a metering label counts."),
    (
        "wisp_metering_label_bytes_total",
        "Bytes of packets that a router passed on and a metering label counts.",
    ),
];
const FLOATING_RECEIVED: Pair = [
    ("wisp_floating_ip_receive_packets_total", "Packets from outside to a floating address."),
    ("wisp_floating_ip_receive_bytes_total", "Bytes of packets from outside to a floating address."),
];
const FLOATING_SENT: Pair = [
    ("wisp_floating_ip_transmit_packets_total", "Packets to the outside from a floating address."),
    ("wisp_floating_ip_transmit_bytes_total", "Bytes of packets to the outside from a floating address."),
];

fn add_count(families: &mut Families, pair: &Pair, labels: &[(&'static str, &str)], count: Count) {
    let [(packets, packets_help), (bytes, bytes_help)] = *pair;
    families.add(packets, packets_help, labels, count.packets);
    families.add(bytes, bytes_help, labels, count.bytes);
}

/// Names and words for a queue's counters: packets, bytes, packets that were lost.
type Queue = [(&'static str, &'static str); 3];

const QUEUE_RECEIVED: Queue = [
    (
        "wisp_port_queue_receive_packets_total",
        "Packets that a queue of a port's guest was given, what its VMM answers included.",
    ),
    ("wisp_port_queue_receive_bytes_total", "Bytes of packets that a queue of a port's guest was given."),
    ("wisp_port_queue_receive_drops_total", "Packets that a queue of a port's guest could not be given."),
];
const QUEUE_SENT: Queue = [
    (
        "wisp_port_queue_transmit_packets_total",
        "Packets that a port's guest has sent by a queue, what its VMM takes included.",
    ),
    ("wisp_port_queue_transmit_bytes_total", "Bytes of packets that a port's guest has sent by a queue."),
    ("wisp_port_queue_transmit_drops_total", "Packets of a port's guest in a queue that were not taken."),
];

fn add_queue(families: &mut Families, queue: &Queue, labels: &[(&'static str, &str)], counts: QueueCounts) {
    let values = [counts.packets, counts.bytes, counts.drops];
    for ((name, help), value) in queue.iter().zip(values) {
        families.add(name, help, labels, value);
    }
}

/// Names and words for a link's counters.
struct Link {
    received: Pair,
    sent: Pair,
    rest: [(&'static str, &'static str); 4],
}

const PORT: Link = Link {
    received: [
        ("wisp_port_receive_packets_total", "Frames that a port's guest was sent."),
        ("wisp_port_receive_bytes_total", "Bytes of frames that a port's guest was sent."),
    ],
    sent: [
        ("wisp_port_transmit_packets_total", "Frames that a port's guest has sent."),
        ("wisp_port_transmit_bytes_total", "Bytes of frames that a port's guest has sent."),
    ],
    rest: [
        ("wisp_port_receive_errors_total", "Frames that a port's guest could not be given."),
        ("wisp_port_transmit_errors_total", "Frames of a port's guest that were damaged."),
        ("wisp_port_receive_drops_total", "Frames for a port's guest that were dropped at its tap."),
        ("wisp_port_transmit_drops_total", "Frames of a port's guest that were dropped at its tap."),
    ],
};

const ROUTER_PORT: Link = Link {
    received: [
        ("wisp_router_port_receive_packets_total", "Frames that a router was sent by a port of its."),
        ("wisp_router_port_receive_bytes_total", "Bytes of frames that a router was sent by a port of its."),
    ],
    sent: [
        ("wisp_router_port_transmit_packets_total", "Frames that a router has sent by a port of its."),
        ("wisp_router_port_transmit_bytes_total", "Bytes of frames that a router has sent by a port of its."),
    ],
    rest: [
        ("wisp_router_port_receive_errors_total", "Damaged frames at a router's port."),
        ("wisp_router_port_transmit_errors_total", "Frames that a router could not send by a port of its."),
        ("wisp_router_port_receive_drops_total", "Frames for a router that were dropped at its port."),
        ("wisp_router_port_transmit_drops_total", "Frames of a router's that were dropped at its port."),
    ],
};

fn add_link(families: &mut Families, link: &Link, labels: &[(&'static str, &str)], counts: &LinkCounts) {
    add_count(families, &link.received, labels, counts.received);
    add_count(families, &link.sent, labels, counts.sent);
    let rest = [counts.receive_errors, counts.send_errors, counts.receive_drops, counts.send_drops];
    for ((name, help), value) in link.rest.iter().zip(rest) {
        families.add(name, help, labels, value);
    }
}

#[cfg(test)]
mod tests {
    use control::agent::figures::{PairStatus, RouterTraffic};

    use super::*;

    #[test]
    fn guests_counters_are_the_other_way_round_than_their_hosts() {
        let count = |number| Count { packets: number, bytes: 100 * number };
        let counts =
            LinkCounts { received: count(1), sent: count(2), send_drops: 3, ..LinkCounts::default() };
        let queue = |packets| QueueCounts { packets, bytes: 100 * packets, drops: packets + 1 };
        let pair = PairStatus { receive: queue(7), transmit: queue(8) };
        let router = RouterTraffic {
            ports: [("rp".to_owned(), counts)].into(),
            floating: [([203, 0, 113, 10].into(), (count(4), count(5)))].into(),
            labels: [("l".to_owned(), count(6))].into(),
        };
        let counted = HostTraffic {
            ports: [("p".to_owned(), counts)].into(),
            queues: [("p".to_owned(), vec![PairStatus::default(), pair])].into(),
            routers: [("r".to_owned(), router)].into(),
        };
        let text = text(&[("h\"".to_owned(), Some(counted)), ("silent".to_owned(), None)].into());
        for line in [
            "# TYPE wisp_port_receive_bytes_total counter",
            "wisp_port_receive_bytes_total{host=\"h\\\"\",port=\"p\"} 200",
            "wisp_port_transmit_packets_total{host=\"h\\\"\",port=\"p\"} 1",
            "wisp_port_receive_drops_total{host=\"h\\\"\",port=\"p\"} 3",
            "# TYPE wisp_port_queue_receive_packets_total counter",
            "wisp_port_queue_receive_packets_total{host=\"h\\\"\",port=\"p\",queue=\"1\"} 7",
            "wisp_port_queue_receive_packets_total{host=\"h\\\"\",port=\"p\",queue=\"0\"} 0",
            "wisp_port_queue_transmit_bytes_total{host=\"h\\\"\",port=\"p\",queue=\"1\"} 800",
            "wisp_port_queue_transmit_drops_total{host=\"h\\\"\",port=\"p\",queue=\"1\"} 9",
            "wisp_router_port_receive_bytes_total{host=\"h\\\"\",port=\"rp\",router=\"r\"} 100",
            "wisp_floating_ip_transmit_bytes_total{address=\"203.0.113.10\",host=\"h\\\"\",router=\"r\"} 500",
            "wisp_metering_label_packets_total{host=\"h\\\"\",label=\"l\",router=\"r\"} 6",
            "# TYPE wisp_host_answers gauge",
            "wisp_host_answers{host=\"silent\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }
}
