//! Code points against the kernel: what leaves has that of its address outside, as whoever gets it sees.

use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};

use super::limit::{OUTSIDE_V6, TEXT, send_ipv6, speak_ipv6};
use super::router::{
    DATABASE_GUEST, DATABASE_MAC, FLOATING, HOST, ROUTER, Site, WEB_GUEST, WEB_MAC, send, socket,
};
use super::*;

/// The code point of the next datagram, and nothing of ECN beside it.
fn code_point(socket: &UdpSocket) -> u8 {
    let mut text = [0; 200];
    let mut parts = [std::io::IoSliceMut::new(&mut text)];
    let mut space = nix::cmsg_space!(i32);
    let heard = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty()).unwrap();
    let class = heard.cmsgs().unwrap().find_map(|message| match message {
        ControlMessageOwned::Ipv4Tos(class) => Some(class),
        ControlMessageOwned::Ipv6TClass(class) => u8::try_from(class).ok(),
        _ => None,
    });
    let class = class.expect("the kernel tells the class");
    assert_eq!(class & 3, 0);
    class >> 2
}

#[test]
fn what_leaves_is_marked_by_its_address_outside_and_checksums_stay_right() {
    in_own_network(|| {
        let mut site = Site::new(43);
        let name = site.tag.namespace(1);
        site.translate(|nat| {
            nat.floating.insert(FLOATING, WEB_GUEST.address);
        });
        speak_ipv6(&mut site);
        let (web, database) = (site.guest(1), site.guest(2));
        let (outside, ipv6) = (socket(5000), UdpSocket::bind((OUTSIDE_V6, 5001)).unwrap());
        ipv6.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        setsockopt(&outside, sockopt::IpRecvTos, &true).unwrap();
        setsockopt(&ipv6, sockopt::Ipv6RecvTClass, &true).unwrap();
        // The kernel takes no packet whose header's checksum is wrong, so what is heard had a right one.
        let marks = |site: &mut Site, marks: &[(Ipv4Addr, u8)]| {
            site.wanted.routers.get_mut(&name).unwrap().marks =
                marks.iter().map(|(address, code)| ((*address).into(), *code)).collect();
            site.host.converge_router(&site.wanted, &name).unwrap();
            assert_eq!(plan(site.tag, &site.wanted, &site.host.observe().unwrap()), []);
            send(&web, WEB_GUEST, WEB_MAC, HOST, (4000, 5000), &TEXT);
            let of_floating = code_point(&outside);
            send(&database, DATABASE_GUEST, DATABASE_MAC, HOST, (4000, 5000), &TEXT);
            let of_router = code_point(&outside);
            send_ipv6(&web, 5001);
            (of_floating, of_router, code_point(&ipv6))
        };
        assert_eq!(marks(&mut site, &[]), (0, 0, 0));
        assert_eq!(marks(&mut site, &[(FLOATING, 46)]), (46, 0, 0));
        assert_eq!(marks(&mut site, &[(FLOATING, 46), (ROUTER, 10)]), (46, 10, 10));
        assert_eq!(marks(&mut site, &[(FLOATING, 63), (ROUTER, 63)]), (63, 63, 63));
        assert_eq!(marks(&mut site, &[(ROUTER, 10)]), (0, 10, 10));
        assert_eq!(marks(&mut site, &[]), (0, 0, 0));
    });
}
