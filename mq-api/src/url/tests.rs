use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn host(name: &str, port: Option<u16>) -> Host {
    Host {
        name: name.to_owned(),
        port,
    }
}

#[test]
fn urls_come_apart_into_decoded_parts() {
    let url =
        ConnectUrl::parse("AMQPS://us%3Aer:p%2F%40%3A@a:1,[::1]:2,[fe80::2],b/v%2Fhost/?x=1%262&y=").unwrap();
    assert_eq!(url.scheme(), "amqps");
    assert_eq!(url.user(), Some("us:er"));
    assert_eq!(url.password(), Some("p/@:"));
    assert_eq!(
        url.hosts(),
        [
            host("a", Some(1)),
            host("::1", Some(2)),
            host("fe80::2", None),
            host("b", None)
        ]
    );
    assert_eq!(url.hosts()[2].address(5672), "[fe80::2]:5672");
    assert_eq!(url.path(), "v/host");
    let mut options = url.options();
    assert_eq!(options.take("x").as_deref(), Some("1&2"));
    assert_eq!(options.take("y").as_deref(), Some(""));
    assert_eq!(options.take("z"), None);
    options.finish().unwrap();
}

#[test]
fn a_backend_in_the_process_needs_no_host() {
    let url = ConnectUrl::parse("memory://").unwrap();
    assert!(url.hosts().is_empty() && url.require_hosts().is_err());
    assert_eq!(
        ConnectUrl::parse("memory://shared").unwrap().hosts(),
        [host("shared", None)]
    );
}

#[test]
fn a_password_alone_needs_no_user() {
    let url = ConnectUrl::parse("redis://:secret@h").unwrap();
    assert_eq!((url.user(), url.password()), (None, Some("secret")));
    assert_eq!(url.to_string(), "redis://:***@h");
}

#[test]
fn malformed_urls_name_the_rule_and_never_the_password() {
    for (url, rule) in [
        ("kafka", "`://`"),
        ("://a", "scheme"),
        ("1a://a", "scheme"),
        ("a b://a", "scheme"),
        ("redis://u:sec ret@h", "space"),
        ("redis://u:sec#ret@h", "%23"),
        ("redis://u:sec/ret@h:1", "port"),
        ("redis://u:sec%2@h", "hexadecimal"),
        ("redis://u:sec%ffret@h", "UTF-8"),
        ("redis://u:secret@h:0", "port"),
        ("redis://u:secret@h:70000", "port"),
        ("redis://u:secret@h,,i", "empty"),
        ("redis://u:secret@[::1", "`]`"),
        ("redis://u:secret@[::1]x", "`]`"),
        ("redis://u:secret@h?a", "`=`"),
        ("redis://u:secret@h?=1", "no name"),
        ("redis://u:secret@h?a=1&a=2", "`a` of the URL is given twice"),
    ] {
        let error = ConnectUrl::parse(url).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{url}");
        let text = format!("{error} {error:?}");
        assert!(text.contains(rule), "{url}: {text}");
        assert!(!text.contains("sec"), "{url}: {text}");
    }
}

#[test]
fn nothing_shows_the_password_or_an_options_value() {
    let url = ConnectUrl::parse("amqp://app:secret@h:1/v?token=secret").unwrap();
    let text = format!("{url} {url:?} {:?}", url.options());
    assert!(!text.contains("secret"), "{text}");
    assert!(
        text.contains("amqp://app:***@h:1/v") && text.contains("token"),
        "{text}"
    );
}

#[test]
fn options_are_read_by_their_types() {
    let url = ConnectUrl::parse("x://h?d=250ms&e=2m&s=64KiB&n=7&b=true&w=raw").unwrap();
    let mut options = url.options();
    assert_eq!(
        options.take_duration("d").unwrap(),
        Some(Duration::from_millis(250))
    );
    assert_eq!(
        options.take_duration("e").unwrap(),
        Some(Duration::from_secs(120))
    );
    assert_eq!(options.take_size("s").unwrap(), Some(65536));
    assert_eq!(options.take_number::<u8>("n").unwrap(), Some(7));
    assert_eq!(options.take_bool("b").unwrap(), Some(true));
    let words = [("raw", 1), ("portable", 2)];
    assert_eq!(options.take_word("w", &words).unwrap(), Some(1));
    assert_eq!(options.take_word("v", &words).unwrap(), None);
    options.finish().unwrap();
}

#[test]
fn wrong_values_name_option_value_and_rule() {
    type Take = fn(&mut UrlOptions) -> Option<Error>;
    let cases: [(&str, Take, &str); 7] = [
        ("a=5", |o| o.take_duration("a").err(), "`ms`"),
        ("a=-5s", |o| o.take_duration("a").err(), "`ms`"),
        ("a=5days", |o| o.take_duration("a").err(), "`ms`"),
        ("a=99999999999999999999s", |o| o.take_duration("a").err(), "`ms`"),
        ("a=5KB", |o| o.take_size("a").err(), "`KiB`"),
        ("a=300", |o| o.take_number::<u8>("a").err(), "number"),
        ("a=yes", |o| o.take_bool("a").err(), "`true`"),
    ];
    for (query, take, rule) in cases {
        let url = ConnectUrl::parse(&format!("x://h?{query}")).unwrap();
        let error = take(&mut url.options()).unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(
            error.context().contains("`a`") && error.context().contains(rule),
            "{error}"
        );
    }
}

#[test]
fn what_no_one_takes_is_unknown() {
    let url = ConnectUrl::parse("x://h?known=1&strange=secret").unwrap();
    let mut options = url.options();
    options.take("known");
    let error = options.finish().unwrap_err();
    assert!(error.context().contains("`strange`") && error.context().contains("`known`"));
    assert!(!error.context().contains("secret"), "{error}");
}

#[test]
fn client_options_are_not_the_drivers() {
    let url = ConnectUrl::parse("x://h?request_timeout=5s&memory_budget=1MiB&close_timeout=1s").unwrap();
    url.options().finish().unwrap();
    let options = url.client_options().unwrap();
    assert_eq!(options.request_timeout, Duration::from_secs(5));
    assert_eq!(options.memory_budget, 1 << 20);
    assert_eq!(options.close_timeout, Duration::from_secs(1));
    let zero = ConnectUrl::parse("x://h?request_timeout=0s").unwrap();
    assert!(
        zero.client_options()
            .unwrap_err()
            .context()
            .contains("request_timeout")
    );
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,60}", tail in "[a-z:/@%?=&,\\[\\]#0-9]{0,40}") {
        let _ = ConnectUrl::parse(&text);
        let _ = ConnectUrl::parse(&format!("redis://{tail}"));
        if let Ok(url) = ConnectUrl::parse(&format!("redis://u:hidden@{tail}")) {
            let shown = format!("{url:?}");
            prop_assert!(!shown.contains("hidden"));
        }
    }
}
