//! Ports' own DHCP options (Network API: extra DHCP options): what is taken, and what a change makes of them.

use crate::error::{Error, Result};
use crate::model::network::ExtraDhcpOption;

/// The most options of one port: they have to fit into one message.
const DHCP_OPTIONS_MAX: usize = 32;
/// Characters of a name and of a value (Neutron's `DHCP_OPT_NAME_MAX_LEN`, `DHCP_OPT_VALUE_MAX_LEN`).
const NAME_CHARACTERS_MAX: usize = 64;
const VALUE_CHARACTERS_MAX: usize = 255;
/// Options that a blank value takes from what the subnet gives (`VALID_BLANK_EXTRA_DHCP_OPTS`).
const MAY_BE_BLANK: [&str; 2] = ["router", "classless-static-route"];

/// One option as a client wishes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DhcpOptionWish {
    /// Its name.
    pub name: String,
    /// Its value; none takes the option from the port.
    pub value: Option<String>,
    /// For DHCP (4) or DHCPv6 (6).
    pub ip_version: u8,
}

impl DhcpOptionWish {
    /// Whether it is an option in Neutron's eyes; whether DHCP has one of that name is not asked.
    fn is_valid(&self) -> bool {
        let value = self.value.as_deref();
        let is_short = value.is_none_or(|value| value.chars().count() <= VALUE_CHARACTERS_MAX);
        if !is_short || !matches!(self.ip_version, 4 | 6) {
            return false;
        }
        let is_line = |text: &str| !text.trim().is_empty() && !text.contains(['\n', '\r']);
        MAY_BE_BLANK.contains(&self.name.as_str())
            || (is_line(&self.name)
                && self.name.chars().count() <= NAME_CHARACTERS_MAX
                && value.is_none_or(is_line))
    }
}

/// Makes of a port's options what is wished: those that are not named stay.
pub(super) fn change(options: &mut Vec<ExtraDhcpOption>, wishes: &[DhcpOptionWish]) -> Result<()> {
    if let Some(wish) = wishes.iter().find(|wish| !wish.is_valid()) {
        let name: String = wish.name.chars().take(NAME_CHARACTERS_MAX).collect();
        return Err(Error::invalid(
            "InvalidInput",
            format!("Invalid input for operation: No valid key specs matched for: {{'opt_name': '{name}'}}."),
        ));
    }
    for wish in wishes {
        options.retain(|option| (&option.name, option.ip_version) != (&wish.name, wish.ip_version));
        if let Some(value) = &wish.value {
            let (name, value) = (wish.name.clone(), value.clone());
            options.push(ExtraDhcpOption { name, value, ip_version: wish.ip_version });
        }
    }
    if options.len() > DHCP_OPTIONS_MAX {
        return Err(Error::invalid(
            "InvalidInput",
            format!("Invalid input for operation: a port can have at most {DHCP_OPTIONS_MAX} DHCP options."),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(name: &str, value: Option<&str>, ip_version: u8) -> DhcpOptionWish {
        DhcpOptionWish { name: name.to_owned(), value: value.map(str::to_owned), ip_version }
    }

    #[test]
    fn named_options_change_and_others_stay() {
        let mut options = Vec::new();
        let made =
            [wish("mtu", Some("1400"), 4), wish("dns-server", Some("::1"), 6), wish("router", Some(""), 4)];
        change(&mut options, &made).unwrap();
        change(&mut options, &[wish("mtu", None, 4), wish("dns-server", Some("::2"), 6)]).unwrap();
        let left: Vec<_> =
            options.iter().map(|option| (option.name.as_str(), option.value.as_str())).collect();
        assert_eq!(left, [("router", ""), ("dns-server", "::2")]);
    }

    #[test]
    fn what_is_no_option_is_refused() {
        let long = "x".repeat(256);
        for refused in [
            wish("", Some("x"), 4),
            wish("mtu", Some(""), 4),
            wish("mtu", Some("1\n2"), 4),
            wish("mtu", Some("1"), 5),
            wish(&long, Some("1"), 4),
            wish("router", Some(&long), 4),
        ] {
            assert!(change(&mut Vec::new(), std::slice::from_ref(&refused)).is_err(), "{refused:?}");
        }
        let many: Vec<_> = (0..33).map(|number| wish(&number.to_string(), Some("x"), 4)).collect();
        assert!(change(&mut Vec::new(), &many).is_err());
        assert!(change(&mut Vec::new(), &many[..32]).is_ok());
    }
}
