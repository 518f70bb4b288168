//! The targets: the name of the test, the function, and of how many inputs a target gets one.

/// Hands the list to a macro.
macro_rules! every_target {
    ($with:ident) => {
        $with! {
            damaged_bencode_is_read_or_refused: targets::bencode / 1;
            damaged_torrents_are_read_or_refused_and_lead_nowhere: targets::metainfo / 1;
            damaged_handshakes_are_read_or_refused: targets::handshake / 1;
            damaged_hidden_handshakes_end_the_same_however_they_are_cut: targets::mse / 1;
            damaged_messages_are_the_same_events_however_they_are_cut: targets::decoder / 1;
            damaged_extension_handshakes_are_read_or_refused: targets::extended / 1;
            damaged_peer_exchange_is_read_or_refused: targets::pex / 1;
            damaged_messages_of_hole_punching_are_read_or_refused: targets::holepunch / 1;
            damaged_metadata_messages_are_read_or_refused: targets::metadata / 1;
            damaged_http_answers_are_the_same_body_however_they_are_cut: targets::http_response / 1;
            damaged_answers_of_web_seeds_are_the_same_part_however_they_are_cut: web_seed::web_seed / 1;
            damaged_announce_answers_are_read_or_refused: targets::announce_answer / 1;
            damaged_udp_answers_are_read_or_refused: targets::udp_answer / 1;
            damaged_requests_to_the_tracker_are_read_or_refused: targets::tracker_request / 1;
            damaged_datagrams_to_the_tracker_are_read_or_refused: targets::udp_request / 1;
            damaged_magnet_links_are_read_or_refused: targets::magnet / 1;
            damaged_local_announces_are_read_or_refused: targets::lsd / 1;
            damaged_requests_to_the_control_server_are_read_or_refused: targets::control_request / 1;
            damaged_forms_are_read_or_refused: form::form / 1;
            damaged_forms_of_several_parts_are_read_or_refused: form::multipart / 1;
            damaged_urls_are_read_or_refused: targets::url / 1;
            damaged_answers_of_name_servers_are_read_or_refused: targets::dns_answer / 1;
            damaged_answers_of_proxies_end_the_same_however_they_are_cut: proxy::socks_answers / 1;
            damaged_datagrams_of_proxies_are_read_or_refused: proxy::socks_datagram / 1;
            damaged_lists_of_addresses_are_read_or_refused: proxy::ip_list / 1;
            damaged_utp_packets_are_read_or_refused: utp::utp_packet / 1;
            utp_ports_under_any_packets_keep_their_limits: utp::utp_port / 10;
            damaged_answers_of_gateways_are_read_or_refused: gateway::map_answer / 1;
            damaged_answers_of_upnp_gateways_are_read_or_refused: gateway::upnp_answer / 1;
            damaged_answers_to_a_scrape_are_read_or_refused: gateway::scrape_answer / 1;
            damaged_datagrams_of_the_dht_are_read_or_refused: dht::krpc / 1;
            damaged_lists_of_dht_nodes_are_read_or_refused: dht::saved_nodes / 1;
            damaged_resume_files_of_other_programs_are_read_or_refused: foreign::foreign / 1;
            damaged_records_are_read_or_refused: targets::record / 1;
            any_names_and_links_stay_below_the_root: layout::layout / 1;
            a_record_is_worth_no_more_than_the_disk: layout::verdict / 1;
            a_swarm_under_any_order_of_events_keeps_its_accounts: targets::swarm / 10;
            a_search_for_metadata_under_any_order_of_events_keeps_its_accounts: search::search / 10;
            a_dht_node_under_any_order_of_events_keeps_its_limits: dht::dht_node / 20;
            blocks_in_any_order_lie_where_they_belong: assembly::assembly / 10;
            a_tracker_under_any_announces_keeps_its_limits: registry::registry / 10;
        }
    };
}
