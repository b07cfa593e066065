//! The five kinds of QoS rules as bodies say them.

use control::model::network::qos::{QosRule, QosRuleKind};
use net::spec::Direction;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::super::bulk::Several;
use super::super::{Number, Shown};
use crate::error::Fault;
use crate::network::invalid;

/// The greatest rate (Neutron's `DB_INTEGER_MAX_VALUE`).
pub(super) const RATE_MAX: u32 = i32::MAX as u32;

/// A kind of rules in a body.
pub(super) trait RuleWire: Several<View: From<RuleView>> + DeserializeOwned + Send + 'static {
    /// What is said, over what the rule said before.
    fn over(self, before: Option<&QosRuleKind>) -> Result<QosRuleKind, Fault>;

    /// Whether a rule is of this kind.
    fn is_of(kind: &QosRuleKind) -> bool;
}

/// A rule as it is shown: each kind has some of these.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub(super) struct RuleView {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_kbps: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_burst_kbps: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_kbps: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_kpps: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_burst_kpps: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_kpps: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dscp_mark: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    direction: Option<&'static str>,
}

fn way(direction: Direction) -> Option<&'static str> {
    Some(match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    })
}

/// A rule as it is shown.
pub(super) fn view(rule: &QosRule) -> RuleView {
    let mut view = RuleView { id: rule.id.clone(), ..RuleView::default() };
    match rule.kind {
        QosRuleKind::BandwidthLimit { max_kbps, max_burst_kbps, direction } => {
            view.max_kbps = Some(max_kbps);
            view.max_burst_kbps = Some(max_burst_kbps);
            view.direction = way(direction);
        }
        QosRuleKind::DscpMarking { dscp_mark } => view.dscp_mark = Some(dscp_mark),
        QosRuleKind::MinimumBandwidth { min_kbps, direction } => {
            view.min_kbps = Some(min_kbps);
            view.direction = way(direction);
        }
        QosRuleKind::PacketRateLimit { max_kpps, max_burst_kpps, direction } => {
            view.max_kpps = Some(max_kpps);
            view.max_burst_kpps = Some(max_burst_kpps);
            view.direction = way(direction);
        }
        QosRuleKind::MinimumPacketRate { min_kpps, direction } => {
            view.min_kpps = Some(min_kpps);
            view.direction = direction.map_or(Some("any"), way);
        }
    }
    view
}

/// A rate that is said, or was, or a default.
fn rate(
    field: &str,
    said: Option<Number<u32>>,
    before: Option<u32>,
    default: Option<u32>,
) -> Result<u32, Fault> {
    let rate = said.map(|number| number.0).or(before).or(default);
    match rate {
        Some(rate) if rate <= RATE_MAX => Ok(rate),
        Some(rate) => Err(invalid(format!(
            "Invalid input for {field}. Reason: '{rate}' is too large - must be no larger than '{RATE_MAX}'."
        ))),
        None => Err(Fault::malformed(format!(
            "Failed to parse request. Required attribute '{field}' not specified"
        ))),
    }
}

macro_rules! wires {
    ($($name:ident, $shown:ident: $one:literal, $many:literal, $variant:ident { $($field:ident: $type:ty),* };)*) => {$(
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(super) struct $name {
            $($field: Option<$type>,)*
        }

        impl Several for $name {
            type View = $shown;
        }

        /// As it is shown.
        #[derive(Debug, Serialize, JsonSchema)]
        pub(super) struct $shown {
            #[serde(flatten)]
            rule: RuleView,
        }

        impl Shown for $shown {
            const NAMES: &'static [&'static str; 2] = &[$one, $many];
        }

        impl From<RuleView> for $shown {
            fn from(rule: RuleView) -> Self {
                Self { rule }
            }
        }

        impl RuleWire for $name {
            fn over(self, before: Option<&QosRuleKind>) -> Result<QosRuleKind, Fault> {
                self.merged(before)
            }

            fn is_of(kind: &QosRuleKind) -> bool {
                matches!(kind, QosRuleKind::$variant { .. })
            }
        }
    )*};
}

wires! {
    BandwidthLimit, BandwidthLimitRule: "bandwidth_limit_rule", "bandwidth_limit_rules", BandwidthLimit {
        max_kbps: Number<u32>, max_burst_kbps: Number<u32>, direction: Direction
    };
    DscpMarking, DscpMarkingRule: "dscp_marking_rule", "dscp_marking_rules", DscpMarking { dscp_mark: Number<u8> };
    MinimumBandwidth, MinimumBandwidthRule: "minimum_bandwidth_rule", "minimum_bandwidth_rules", MinimumBandwidth {
        min_kbps: Number<u32>, direction: Direction
    };
    PacketRateLimit, PacketRateLimitRule: "packet_rate_limit_rule", "packet_rate_limit_rules", PacketRateLimit {
        max_kpps: Number<u32>, max_burst_kpps: Number<u32>, direction: Direction
    };
    MinimumPacketRate, MinimumPacketRateRule: "minimum_packet_rate_rule", "minimum_packet_rate_rules", MinimumPacketRate {
        min_kpps: Number<u32>, direction: AnyDirection
    };
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum AnyDirection {
    Ingress,
    Egress,
    Any,
}

impl BandwidthLimit {
    fn merged(self, before: Option<&QosRuleKind>) -> Result<QosRuleKind, Fault> {
        let (max, burst, way) = match before {
            Some(QosRuleKind::BandwidthLimit { max_kbps, max_burst_kbps, direction }) => {
                (Some(*max_kbps), Some(*max_burst_kbps), *direction)
            }
            _ => (None, None, Direction::Egress),
        };
        Ok(QosRuleKind::BandwidthLimit {
            max_kbps: rate("max_kbps", self.max_kbps, max, None)?,
            max_burst_kbps: rate("max_burst_kbps", self.max_burst_kbps, burst, Some(0))?,
            direction: self.direction.unwrap_or(way),
        })
    }
}

impl DscpMarking {
    fn merged(self, before: Option<&QosRuleKind>) -> Result<QosRuleKind, Fault> {
        let before = match before {
            Some(QosRuleKind::DscpMarking { dscp_mark }) => Some(u32::from(*dscp_mark)),
            _ => None,
        };
        let mark = rate("dscp_mark", self.dscp_mark.map(|mark| Number(u32::from(mark.0))), before, None)?;
        Ok(QosRuleKind::DscpMarking { dscp_mark: u8::try_from(mark).unwrap_or(u8::MAX) })
    }
}

impl MinimumBandwidth {
    fn merged(self, before: Option<&QosRuleKind>) -> Result<QosRuleKind, Fault> {
        let (min, way) = match before {
            Some(QosRuleKind::MinimumBandwidth { min_kbps, direction }) => (Some(*min_kbps), *direction),
            _ => (None, Direction::Egress),
        };
        Ok(QosRuleKind::MinimumBandwidth {
            min_kbps: rate("min_kbps", self.min_kbps, min, None)?,
            direction: self.direction.unwrap_or(way),
        })
    }
}

impl PacketRateLimit {
    fn merged(self, before: Option<&QosRuleKind>) -> Result<QosRuleKind, Fault> {
        let (max, burst, way) = match before {
            Some(QosRuleKind::PacketRateLimit { max_kpps, max_burst_kpps, direction }) => {
                (Some(*max_kpps), Some(*max_burst_kpps), *direction)
            }
            _ => (None, None, Direction::Egress),
        };
        Ok(QosRuleKind::PacketRateLimit {
            max_kpps: rate("max_kpps", self.max_kpps, max, None)?,
            max_burst_kpps: rate("max_burst_kpps", self.max_burst_kpps, burst, Some(0))?,
            direction: self.direction.unwrap_or(way),
        })
    }
}

impl MinimumPacketRate {
    fn merged(self, before: Option<&QosRuleKind>) -> Result<QosRuleKind, Fault> {
        let (min, way) = match before {
            Some(QosRuleKind::MinimumPacketRate { min_kpps, direction }) => (Some(*min_kpps), *direction),
            _ => (None, Some(Direction::Egress)),
        };
        Ok(QosRuleKind::MinimumPacketRate {
            min_kpps: rate("min_kpps", self.min_kpps, min, None)?,
            direction: match self.direction {
                None => way,
                Some(AnyDirection::Any) => None,
                Some(AnyDirection::Ingress) => Some(Direction::Ingress),
                Some(AnyDirection::Egress) => Some(Direction::Egress),
            },
        })
    }
}
