package upstreams

import "strings"

// actions are those the official server knows (protocol 4.4, backend 12.201.4). It refuses all others.
var actions = func() map[string]bool {
	known := map[string]bool{}
	for name := range strings.FieldsSeq(`
		set set_next set_fail reset delete get update_fail uninstall ping
		download_0 download_10 download_20 download_30 download_40 download_50 download_60 download_70 download_80 download_90
		download_complete download_fail download_zip_start download_zip_complete finish_download_fail
		download_manifest_start download_manifest_complete download_manifest_file_fail download_manifest_checksum_fail
		download_manifest_brotli_fail manifest_path_fail
		windows_path_fail canonical_path_fail directory_path_fail unzip_fail low_mem_fail decrypt_fail checksum_fail
		checksum_required insufficient_disk_space
		app_moved_to_foreground app_moved_to_background app_launch_start app_launch_ready app_launch_timeout
		os_version_changed native_app_version_changed
		app_crash app_crash_native app_anr app_killed_low_memory app_killed_excessive_resource_usage
		app_initialization_failure app_memory_warning
		webview_javascript_error webview_unhandled_rejection webview_resource_error webview_security_policy_violation
		webview_unclean_restart webview_render_process_gone webview_content_process_terminated webview_dom_content_loaded
		webview_page_loaded
		setChannel getChannel rateLimited rate_limit_reached blocked_by_server_url customIdBlocked
		needPlanUpgrade missingBundle noNew disablePlatformIos disablePlatformAndroid disablePlatformElectron disableAutoUpdate
		disableAutoUpdateToMajor disableAutoUpdateToMinor disableAutoUpdateToPatch disableAutoUpdateMetadata
		disableAutoUpdateUnderNative disableDevBuild disableProdBuild disableEmulator disableDevice
		cannotUpdateViaPrivateChannel channelMisconfigured cannotGetBundle NoChannelOrOverride keyMismatch InvalidIp
		backend_refusal`) {
		known[name] = true
	}
	return known
}()
