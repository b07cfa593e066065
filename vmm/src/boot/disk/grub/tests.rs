use std::sync::Arc;

use proptest::prelude::*;

use super::super::mock::{MemoryDisk, fat32};
use super::*;

fn boot_files(files: &[(&str, &[u8])]) -> Result<Choice, Error> {
    let volumes = Volumes::open(Arc::new(MemoryDisk(fat32(files)))).unwrap();
    choose(&volumes, &FileName { volume: 0, path: "/boot/grub/grub.cfg".to_owned() })
}

fn boot(script: &str) -> Result<Choice, Error> {
    boot_files(&[("boot/grub/grub.cfg", script.as_bytes()), ("vmlinuz", b"kernel"), ("other", b"kernel")])
}

/// The kernel's path and words.
fn booted(script: &str) -> (String, String) {
    let choice = boot(script).unwrap_or_else(|error| panic!("{script}\n{error}"));
    (choice.kernel.path, choice.cmdline.split_once(' ').map_or("", |(_, words)| words).to_owned())
}

#[test]
fn words_reach_the_kernel_as_grub_passes_them() {
    let script = "set a='x  y'\nlinux /vmlinuz $a \"$a\" 'it is' q=\\\"1\\\" ${b} \"${b}\" end\nboot\n";
    assert_eq!(booted(script).1, "x y \"x  y\" \"it is\" q=\\\"1\\\"  end");
    assert_eq!(boot("linux (hd0)/vmlinuz a\n").unwrap().cmdline, "BOOT_IMAGE=(hd0)/vmlinuz a");
}

#[test]
fn conditions_loops_functions_and_arithmetic_do_what_they_say() {
    let script = r#"
        function add { line="$line $1"; shift; if [ -n "$1" ]; then add $1; fi; return 1 }
        if add a b; then add never; else add c; fi
        for i in 1 2 3 4; do if [ $i -eq 3 ]; then break; fi; add $i; done
        n=3; while [ $n -gt 0 ]; do decrement n; if [ $n = 1 ]; then continue; fi; add n$n; done
        until true; do add never; done
        if ! false; then add d; fi
        if [ -f /vmlinuz -a ! -f /nothing -a -d /boot -a -s /vmlinuz ]; then add e; fi
        if [ ( a = b -o a = a ) -a 5 -lt 10 ]; then add f; fi
        if test -e /nothing; then add never; elif [ "" ]; then add never; elif [ x ]; then add g; fi
        linux /vmlinuz $line
    "#;
    assert_eq!(booted(script).1, "a b c 1 2 n2 n0 d e f g");
}

#[test]
fn root_is_found_by_uuid_label_and_file_and_named_by_device() {
    for search in [
        "search --no-floppy --fs-uuid --set=r 1234-ABCD",
        "search --no-floppy --fs-uuid --set=r --hint-bios=hd0,gpt9 --hint hd0,gpt9 1234-abcd",
        "search -l --set=r SYSTEM",
        "search --file --set=r /vmlinuz",
        "search.fs_uuid 1234-ABCD r hd0,gpt3",
        "search.file /vmlinuz r",
        "set r=hd0",
    ] {
        assert_eq!(booted(&format!("root=nowhere\n{search}\nlinux ($r)/vmlinuz ok\n")).1, "ok", "{search}");
    }
    let error =
        boot("search --set=root --fs-uuid 0000-0000\nmenuentry a { linux (hd1,gpt1)/x }\n").unwrap_err();
    assert_eq!(
        error.to_string(),
        "its entry `a` loads no Linux kernel: the kernel is (hd1,gpt1)/x, but it names (hd1,gpt1)/x, which is not \
         on this disk"
    );
    assert_eq!(
        booted("probe --set=u --fs-uuid ($root)\nlinux /vmlinuz root=UUID=$u\n").1,
        "root=UUID=1234-ABCD"
    );
}

#[test]
fn default_is_a_number_a_title_or_an_identifier_and_else_the_first_entry() {
    let menu = "menuentry 'First one' { linux /vmlinuz first }\n\
                menuentry 'Second' --class x --id two { linux /vmlinuz second }\n\
                submenu 'More' --id more { menuentry 'Third' { linux /vmlinuz third }\n\
                menuentry 'Fourth' --id four { linux /vmlinuz fourth } }\n";
    for (default, words) in [
        ("0", "first"),
        ("1", "second"),
        ("two", "second"),
        ("First one", "first"),
        ("2>1", "fourth"),
        ("more>Third", "third"),
        ("More>four", "fourth"),
        ("more", "third"),
        ("9", "first"),
        ("", "first"),
        ("nothing>0", "first"),
    ] {
        assert_eq!(booted(&format!("{menu}set default=\"{default}\"\n")).1, words, "{default}");
    }
}

#[test]
fn environment_block_chooses_and_keeps_out_what_is_not_asked_for() {
    let script = "load_env\nif [ \"$next_entry\" ]; then default=\"$next_entry\"; else default=$saved_entry; fi\n\
                  menuentry a { linux /vmlinuz a $x }\nmenuentry b { linux /vmlinuz b $x }\n";
    let with = |block: &str, script: &str| {
        let files: [(&str, &[u8]); 3] = [
            ("boot/grub/grub.cfg", script.as_bytes()),
            ("vmlinuz", b"kernel"),
            ("boot/grub/grubenv", block.as_bytes()),
        ];
        boot_files(&files).unwrap().cmdline
    };
    let block = "# GRUB Environment Block\nsaved_entry=b\nx=1\\\\2\n##########";
    assert_eq!(with(block, script), "BOOT_IMAGE=/vmlinuz b 1\\\\2");
    assert_eq!(with(block, &script.replace("load_env", "load_env saved_entry")), "BOOT_IMAGE=/vmlinuz b");
    assert_eq!(with("saved_entry=b\n", script), "BOOT_IMAGE=/vmlinuz a");
}

#[test]
fn fedoras_entries_are_offered_newest_first_and_variables_are_put_in() {
    let files: [(&str, &[u8]); 6] = [
        (
            "boot/grub/grub.cfg",
            b"set kernelopts='root=/dev/vda3 ro'\nblscfg\nif [ -n \"$d\" ]; then set default=\"$d\"; fi\n",
        ),
        ("loader/entries/m-0-rescue.conf", b"title Rescue\nlinux /rescue\noptions rescue\n"),
        (
            "loader/entries/m-6.5.conf",
            b"title Six\nlinux /old\ninitrd /i\noptions $kernelopts $tuned quiet\n",
        ),
        (
            "loader/entries/m-6.12.conf",
            b"title New\nlinux /vmlinuz\ninitrd /i /j\ninitrd $tuned_initrd\noptions $kernelopts quiet\n",
        ),
        ("vmlinuz", b"kernel"),
        ("old", b"kernel"),
    ];
    let choice = boot_files(&files).unwrap();
    assert_eq!(choice.cmdline, "BOOT_IMAGE=(hd0)/vmlinuz root=/dev/vda3 ro quiet");
    let initrds: Vec<_> = choice.initrds.iter().map(|file| file.path.as_str()).collect();
    assert_eq!((choice.title.as_str(), initrds), ("New", vec!["/i", "/j"]));
    let mut chosen = files;
    chosen[0].1 = b"blscfg\nset default=m-6.5\n";
    assert_eq!(boot_files(&chosen).unwrap().kernel.path, "/old");
}

#[test]
fn other_configurations_take_over_and_sources_go_on() {
    let files: [(&str, &[u8]); 4] = [
        ("boot/grub/grub.cfg", b"source /more.cfg\nmenuentry never { linux /never }\nconfigfile /real.cfg\n"),
        ("more.cfg", b"set words=taken\nreturn\nset words=never\n"),
        ("real.cfg", b"menuentry real { linux /vmlinuz $words $config_directory }\n"),
        ("vmlinuz", b"kernel"),
    ];
    let choice = boot_files(&files).unwrap();
    assert_eq!((choice.title.as_str(), choice.cmdline.as_str()), ("real", "BOOT_IMAGE=/vmlinuz taken (hd0)"));
}

#[test]
fn what_boots_no_linux_says_why() {
    for (script, says) in [
        ("", "the configuration has no menu entry"),
        (
            "menuentry Windows { chainloader +1 }",
            "its entry `Windows` loads no Linux kernel: it uses `chainloader`",
        ),
        (
            "menuentry a { linux /missing }",
            "`a` loads no Linux kernel: the kernel /missing is not on the disk (FAT)",
        ),
        ("menuentry a {", "understand /boot/grub/grub.cfg"),
        ("while true; do true; done", "the configuration has no end"),
        ("function f { f; }\nf", "the configuration has no end: it calls itself"),
        ("source /boot/grub/grub.cfg", "the configuration has no end"),
        ("configfile /boot/grub/grub.cfg", "the configuration has no end"),
        ("a=aaaaaaaa\nwhile true; do a=$a$a; done", "a variable grows beyond its bound"),
        (
            "a='x y'\nfor i in 1 2 3 4 5 6 7; do a=\"$a $a $a\"; done; echo $a$a$a$a $a $a $a",
            "too many words",
        ),
    ] {
        let error = boot(script).unwrap_err().to_string();
        assert!(error.contains(says), "{script}: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Any soup of the language's own words comes to an end without a panic.
    #[test]
    fn soups_of_tokens_come_to_an_end(tokens in proptest::collection::vec(prop_oneof![
        Just("if"), Just("then"), Just("elif"), Just("else"), Just("fi"), Just("for"), Just("in"), Just("do"),
        Just("done"), Just("while"), Just("until"), Just("function"), Just("{"), Just("}"), Just(";"), Just("\n"),
        Just("["), Just("]"), Just("!"), Just("("), Just(")"), Just("-a"), Just("-f"), Just("="), Just("$a"),
        Just("\"$@\""), Just("'q'"), Just("a=$a$a"), Just("a"), Just("set"), Just("menuentry"), Just("submenu"),
        Just("linux"), Just("initrd"), Just("/vmlinuz"), Just("source"), Just("configfile"), Just("blscfg"),
        Just("/boot/grub/grub.cfg"), Just("search"), Just("--set=root"), Just("return"), Just("break"), Just("true"),
        Just("shift"), Just("setparams"), Just("load_env"), Just("default=1"), Just("\\"), Just("\""), Just("${"),
    ], 0..60)) {
        let _ = boot(&tokens.join(" "));
    }

    #[test]
    fn arbitrary_text_never_panics(text in "\\PC{0,200}") {
        let _ = boot(&text);
    }
}
