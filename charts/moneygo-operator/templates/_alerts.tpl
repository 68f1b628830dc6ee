{{/* What makes a metric one of this release: nothing, or matchers in braces, after those that are given: list ROOT, MATCHERS. */}}
{{- define "moneygo-operator.matchers" -}}
{{- with list (index . 1) (index . 0).Values.metrics.prometheusRule.matchers | compact | join "," }}
{{- printf "{%s}" . }}
{{- end }}
{{- end }}

{{/* A replica that leads, and did a minute ago: who leads anew may not yet tell of every object. */}}
{{- define "moneygo-operator.steadyLeader" -}}
{{- $leader := printf "moneygo_leader%s" (include "moneygo-operator.matchers" (list . "")) }}
{{- printf "(%s == 1 and %s offset 1m == 1)" $leader $leader }}
{{- end }}

{{/* What is told of objects; while nobody leads for long, as in a crash loop, what was told last. Without that each gap would begin every `for` anew.
     A loop's gaps are up to 5 minutes and a scrape long. list ROOT, METRIC, MATCHERS. */}}
{{- define "moneygo-operator.told" -}}
{{- $metric := printf "%s%s" (index . 1) (include "moneygo-operator.matchers" (list (index . 0) (index . 2))) }}
{{- printf "(%s or (last_over_time(%s[10m]) unless on (cluster, job, money_go_com_shard) %s))" $metric $metric (include "moneygo-operator.steadyLeader" (index . 0)) }}
{{- end }}

{{/* One value for each object, whichever replica tells of it: list ROOT, METRIC, MATCHERS. A Prometheus that overrides `honorLabels`, as OpenShift's for users'
     workloads, has the object's namespace in `exported_namespace`. */}}
{{- define "moneygo-operator.ofObject" -}}
max by (cluster, namespace, exported_namespace, name) {{ include "moneygo-operator.told" . }}
{{- end }}

{{/* One for each object and reason that a condition has: list ROOT, MATCHERS. */}}
{{- define "moneygo-operator.ofReason" -}}
max by (cluster, namespace, exported_namespace, name, reason) {{ include "moneygo-operator.told" (list (index . 0) "moneygo_credential_condition_reason" (index . 1)) }}
{{- end }}

{{/* All but what is the alert's own: list ROOT, ALERT, its values. */}}
{{- define "moneygo-operator.alertHead" -}}
{{- $root := index . 0 }}
{{- with index . 2 }}
{{- with .for }}
for: {{ . }}
{{- end }}
labels:
  {{- toYaml (mergeOverwrite (dict "severity" .severity) ($root.Values.metrics.prometheusRule.alertLabels | default dict)) | nindent 2 }}
{{- end }}
{{- end }}

{{- define "moneygo-operator.runbook" -}}
{{- printf "%s/%s.md" (index . 0).Values.metrics.prometheusRule.runbookUrlPrefix (index . 1) | quote }}
{{- end }}

{{/* Prometheus' own braces are written as text, so that Helm leaves them alone. */}}
{{- define "moneygo-operator.alerts" -}}
{{- $alerts := .Values.metrics.prometheusRule.alerts | default dict }}
{{- $object := "{{ or $labels.exported_namespace $labels.namespace }}/{{ $labels.name }}" }}
{{- $expiration := include "moneygo-operator.ofObject" (list . "moneygo_credential_expiration_timestamp_seconds" "") }}
{{- $renewal := include "moneygo-operator.ofObject" (list . "moneygo_credential_renewal_timestamp_seconds" "") }}
{{- $issued := include "moneygo-operator.ofObject" (list . "moneygo_credential_issued_timestamp_seconds" "") }}
{{- $suspended := include "moneygo-operator.ofObject" (list . "moneygo_credential_suspended" "") }}
{{- with $alerts.refreshOverdue }}
{{- if .enabled }}
- alert: MoneyGoRefreshOverdue
  # How much of the time between refresh and expiry has passed.
  expr: |
    (time() - {{ $renewal }})
      / ({{ $expiration }}
        - {{ $renewal }})
      > {{ .threshold }}
      and ({{ $expiration }} > time())
      unless {{ $suspended }} == 1
  {{- include "moneygo-operator.alertHead" (list $ "MoneyGoRefreshOverdue" .) | trim | nindent 2 }}
  annotations:
    summary: "The token of {{ $object }} should have been refreshed"
    description: {{ printf "The token of the MoneyGoCredential %s is still valid, but {{ $value | humanizePercentage }} of the time between its refresh and its expiry have passed without a new one." $object | quote }}
    runbook_url: {{ include "moneygo-operator.runbook" (list $ "MoneyGoRefreshOverdue") }}
{{- end }}
{{- end }}
{{- with $alerts.tokenExpiring }}
{{- if .enabled }}
- alert: MoneyGoTokenExpiring
  # Only where half the time between refresh and expiry has passed, too: the refresh may be set to come later than the threshold, or little before it.
  expr: |
    (
      ({{ $expiration }} - time())
        / ({{ $expiration }}
          - {{ $issued }})
        < {{ .threshold }}
    )
      and (
        (time() - {{ $renewal }})
          / ({{ $expiration }}
            - {{ $renewal }})
          > 0.5
      )
      and ({{ $expiration }} > time())
      unless {{ $suspended }} == 1
  {{- include "moneygo-operator.alertHead" (list $ "MoneyGoTokenExpiring" .) | trim | nindent 2 }}
  annotations:
    summary: "The token of {{ $object }} is about to expire"
    description: {{ printf "The token of the MoneyGoCredential %s has {{ $value | humanizePercentage }} of its life left, its refresh is overdue, and no new one has come." $object | quote }}
    runbook_url: {{ include "moneygo-operator.runbook" (list $ "MoneyGoTokenExpiring") }}
{{- end }}
{{- end }}
{{- with $alerts.tokenExpired }}
{{- if .enabled }}
- alert: MoneyGoTokenExpired
  expr: |
    time() - {{ $expiration }} >= 0
      unless {{ $suspended }} == 1
  {{- include "moneygo-operator.alertHead" (list $ "MoneyGoTokenExpired" .) | trim | nindent 2 }}
  annotations:
    summary: "The token of {{ $object }} has expired"
    description: {{ printf "The token of the MoneyGoCredential %s expired {{ $value | humanizeDuration }} ago, and no new one has come. Whoever uses it is refused by Money-Go." $object | quote }}
    runbook_url: {{ include "moneygo-operator.runbook" (list $ "MoneyGoTokenExpired") }}
{{- end }}
{{- end }}
{{- with $alerts.credentialsRejected }}
{{- if .enabled }}
- alert: MoneyGoCredentialsRejected
  expr: |
    {{ include "moneygo-operator.ofReason" (list $ `condition="Refreshed",reason=~"InvalidClient|RequestRejected"`) }} == 1
  {{- include "moneygo-operator.alertHead" (list $ "MoneyGoCredentialsRejected" .) | trim | nindent 2 }}
  annotations:
    summary: "Money-Go refuses the client of {{ $object }}"
    description: {{ printf "Money-Go refused the last request of the MoneyGoCredential %s ({{ $labels.reason }}). Nothing but a change of the client, its secret or the scope helps." $object | quote }}
    runbook_url: {{ include "moneygo-operator.runbook" (list $ "MoneyGoCredentialsRejected") }}
{{- end }}
{{- end }}
{{- with $alerts.notReady }}
{{- if .enabled }}
- alert: MoneyGoCredentialNotReady
  # Expired tokens, refused clients, an endpoint that fails and a long queue have alerts of their own.
  expr: |
    (
      {{ include "moneygo-operator.ofReason" (list $ `condition="Ready",reason!~"TokenValid|TokenExpired|InvalidClient|RequestRejected|RateLimited|EndpointUnavailable|BadResponse|Pending"`) }} == 1
        or max by (cluster, namespace, exported_namespace, name, reason) (
          {{ include "moneygo-operator.told" (list $ "moneygo_credential_condition_reason" `condition="Ready",reason="Pending"`) }}
            unless on (cluster, job, money_go_com_shard) moneygo_token_requests_longest_wait_seconds{{ include "moneygo-operator.matchers" (list $ "") }} > 60
        ) == 1
    )
      unless on (cluster, namespace, exported_namespace, name) {{ include "moneygo-operator.ofObject" (list $ "moneygo_credential_condition_reason" `condition="Refreshed",reason=~"InvalidClient|RequestRejected|RateLimited|EndpointUnavailable|BadResponse"`) }} == 1
      unless on (cluster, namespace, exported_namespace, name) {{ $suspended }} == 1
  {{- include "moneygo-operator.alertHead" (list $ "MoneyGoCredentialNotReady" .) | trim | nindent 2 }}
  annotations:
    summary: "{{ $object }} has no token"
    description: {{ printf "The MoneyGoCredential %s has no valid token of its own ({{ $labels.reason }}): see its condition Ready." $object | quote }}
    runbook_url: {{ include "moneygo-operator.runbook" (list $ "MoneyGoCredentialNotReady") }}
{{- end }}
{{- end }}
{{- with $alerts.endpointFailing }}
{{- if .enabled }}
{{- $failing := `condition="Refreshed",reason=~"EndpointUnavailable|BadResponse"` }}
- alert: MoneyGoEndpointFailing
  # Nobody is answered: who leads no more asks no more, and does not know. Or somebody is not, or gets what is no token: what answers may not be Money-Go.
  # Of many objects some fail at any time and go well a moment later; hence the same one both now and a while ago.
  expr: |
    count by (cluster) (moneygo_token_endpoint_up{{ include "moneygo-operator.matchers" (list $ "") }} == 0 and moneygo_leader{{ include "moneygo-operator.matchers" (list $ "") }} == 1) > 0
      or count by (cluster) (
        {{ include "moneygo-operator.ofObject" (list $ "moneygo_credential_condition_reason" $failing) }}
          and max by (cluster, namespace, exported_namespace, name) (last_over_time(moneygo_credential_condition_reason{{ include "moneygo-operator.matchers" (list $ $failing) }}[10m] offset 5m))
      ) > 0
  {{- include "moneygo-operator.alertHead" (list $ "MoneyGoEndpointFailing" .) | trim | nindent 2 }}
  annotations:
    summary: "Money-Go's token endpoint fails"
    description: "Requests to Money-Go's token endpoint, or those of some clients, get no answer, or none that is a token. Tokens are not refreshed; those that there are last until they expire."
    runbook_url: {{ include "moneygo-operator.runbook" (list $ "MoneyGoEndpointFailing") }}
{{- end }}
{{- end }}
{{- with $alerts.throttled }}
{{- if .enabled }}
- alert: MoneyGoThrottled
  # By Money-Go, or by the operator's own limiter. While the endpoint is down all wait for that.
  expr: |
    count by (cluster) ({{ include "moneygo-operator.ofReason" (list $ `condition="Refreshed",reason="RateLimited"`) }}) > 0
      or max by (cluster) (
        moneygo_token_requests_longest_wait_seconds{{ include "moneygo-operator.matchers" (list $ "") }} > {{ .threshold }}
          and moneygo_token_endpoint_up{{ include "moneygo-operator.matchers" (list $ "") }} == 1
      )
  {{- include "moneygo-operator.alertHead" (list $ "MoneyGoThrottled" .) | trim | nindent 2 }}
  annotations:
    summary: "Token requests are throttled"
    description: "Money-Go asks for fewer requests (429), or objects wait long for the operator's own limit on requests. Tokens come late."
    runbook_url: {{ include "moneygo-operator.runbook" (list $ "MoneyGoThrottled") }}
{{- end }}
{{- end }}
{{- with $alerts.watchFailing }}
{{- if .enabled }}
- alert: MoneyGoWatchFailing
  expr: |
    max by (cluster, namespace, job, money_go_com_shard, resource) (moneygo_watches_failing{{ include "moneygo-operator.matchers" (list $ "") }}) > 0
  {{- include "moneygo-operator.alertHead" (list $ "MoneyGoWatchFailing" .) | trim | nindent 2 }}
  annotations:
    summary: "The Money-Go operator is not shown what changes"
    description: {{ "A replica of the operator in {{ $labels.namespace }} cannot watch {{ $labels.resource }}. What is made, changed or deleted meanwhile goes unnoticed; and if it began since, it refreshes no token." | quote }}
    runbook_url: {{ include "moneygo-operator.runbook" (list $ "MoneyGoWatchFailing") }}
{{- end }}
{{- end }}
{{- with $alerts.noLeader }}
{{- if .enabled }}
- alert: MoneyGoNoLeader
  # Each shard has a leader of its own. Replicas that crash again and again are scraped now and then only, and may lead each time.
  expr: |
    max by (cluster, namespace, job, money_go_com_shard) (last_over_time(moneygo_leader{{ include "moneygo-operator.matchers" (list $ "") }}[10m]))
      unless max by (cluster, namespace, job, money_go_com_shard) {{ include "moneygo-operator.steadyLeader" $ }}
  {{- include "moneygo-operator.alertHead" (list $ "MoneyGoNoLeader" .) | trim | nindent 2 }}
  annotations:
    summary: "No replica of the Money-Go operator leads"
    description: {{ "There are replicas of the operator in {{ $labels.namespace }}, but none has had the Lease for a minute on end: they cannot get it, or crash again and again. No token is refreshed, or few are." | quote }}
    runbook_url: {{ include "moneygo-operator.runbook" (list $ "MoneyGoNoLeader") }}
{{- end }}
{{- end }}
{{- with $alerts.absent }}
{{- if .enabled }}
{{- $ofShard := $.Values.shards | empty | ternary "" "'s shard {{ $labels.money_go_com_shard }}" }}
- alert: MoneyGoAbsent
  {{- if $.Values.shards }}
  # One that runs would hide that another does not.
  {{- end }}
  expr: |
    {{- range $index, $shard := $.Values.shards | default (list dict) }}
    {{ if $index }}  or {{ end }}absent(moneygo_build_info{{ include "moneygo-operator.matchers" (list $ (empty $shard.name | ternary "" (printf `money_go_com_shard="%s"` ($shard.name | default "")))) }})
    {{- end }}
  {{- include "moneygo-operator.alertHead" (list $ "MoneyGoAbsent" .) | trim | nindent 2 }}
  annotations:
    summary: {{ printf "The Money-Go operator%s is not there" $ofShard | quote }}
    description: {{ printf "Prometheus scrapes no replica of the Money-Go operator%s: none runs, or none is found. No token may be refreshed, and no other alert of it can fire." $ofShard | quote }}
    runbook_url: {{ include "moneygo-operator.runbook" (list $ "MoneyGoAbsent") }}
{{- end }}
{{- end }}
{{- end }}
