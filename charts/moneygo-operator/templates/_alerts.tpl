{{/* What makes a metric one of this release: nothing, or matchers in braces, after those that are given: list ROOT, MATCHERS. */}}
{{- define "moneygo-operator.matchers" -}}
{{- with list (index . 1) (index . 0).Values.metrics.prometheusRule.matchers | compact | join "," }}
{{- printf "{%s}" . }}
{{- end }}
{{- end }}

{{/* One value for each object, whichever replica tells of it: list ROOT, METRIC, MATCHERS. */}}
{{- define "moneygo-operator.ofObject" -}}
max by (cluster, namespace, name) ({{ index . 1 }}{{ include "moneygo-operator.matchers" (list (index . 0) (index . 2)) }})
{{- end }}

{{/* All but what is the alert's own: list ROOT, ALERT, its values. */}}
{{- define "moneygo-operator.alertHead" -}}
{{- $root := index . 0 }}
{{- with index . 2 }}
{{- with .for }}
for: {{ . }}
{{- end }}
labels:
  {{- toYaml (mergeOverwrite (dict "severity" .severity) $root.Values.metrics.prometheusRule.alertLabels) | nindent 2 }}
{{- end }}
{{- end }}

{{- define "moneygo-operator.runbook" -}}
{{- printf "%s/%s.md" (index . 0).Values.metrics.prometheusRule.runbookUrlPrefix (index . 1) | quote }}
{{- end }}

{{/* Prometheus' own braces are written as text, so that Helm leaves them alone. */}}
{{- define "moneygo-operator.alerts" -}}
{{- $alerts := .Values.metrics.prometheusRule.alerts }}
{{- $object := "{{ $labels.namespace }}/{{ $labels.name }}" }}
{{- $expiration := include "moneygo-operator.ofObject" (list . "moneygo_credential_expiration_timestamp_seconds" "") }}
{{- $renewal := include "moneygo-operator.ofObject" (list . "moneygo_credential_renewal_timestamp_seconds" "") }}
{{- $issued := include "moneygo-operator.ofObject" (list . "moneygo_credential_issued_timestamp_seconds" "") }}
{{- $suspended := include "moneygo-operator.ofObject" (list . "moneygo_credential_suspended" "") }}
{{- with $alerts.refreshOverdue }}
{{- if .enabled }}
- alert: MoneyGoRefreshOverdue
  # How much of the time between refresh and expiry has passed. Of a suspended object there is no refresh.
  expr: |
    (time() - {{ $renewal }})
      / ({{ $expiration }}
        - {{ $renewal }})
      > {{ .threshold }}
      and ({{ $expiration }} > time())
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
  # Only after its refresh: that may be set to come later than the threshold.
  expr: |
    (
      ({{ $expiration }} - time())
        / ({{ $expiration }}
          - {{ $issued }})
        < {{ .threshold }}
    )
      and (time() > {{ $renewal }})
      and ({{ $expiration }} > time())
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
    max by (cluster, namespace, name, reason) (moneygo_credential_condition_reason{{ include "moneygo-operator.matchers" (list $ `condition="Refreshed",reason=~"InvalidClient|RequestRejected"`) }}) == 1
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
  # Expired tokens, refused clients and an endpoint that fails have alerts of their own.
  expr: |
    max by (cluster, namespace, name, reason) (moneygo_credential_condition_reason{{ include "moneygo-operator.matchers" (list $ `condition="Ready",reason!~"TokenValid|TokenExpired|InvalidClient|RequestRejected|RateLimited|EndpointUnavailable|BadResponse"`) }}) == 1
      unless on (cluster, namespace, name) {{ include "moneygo-operator.ofObject" (list $ "moneygo_credential_condition_reason" `condition="Refreshed",reason=~"InvalidClient|RequestRejected|RateLimited|EndpointUnavailable|BadResponse"`) }} == 1
      unless on (cluster, namespace, name) {{ $suspended }} == 1
  {{- include "moneygo-operator.alertHead" (list $ "MoneyGoCredentialNotReady" .) | trim | nindent 2 }}
  annotations:
    summary: "{{ $object }} has no token"
    description: {{ printf "The MoneyGoCredential %s has no valid token of its own ({{ $labels.reason }}): see its condition Ready." $object | quote }}
    runbook_url: {{ include "moneygo-operator.runbook" (list $ "MoneyGoCredentialNotReady") }}
{{- end }}
{{- end }}
{{- with $alerts.endpointFailing }}
{{- if .enabled }}
- alert: MoneyGoEndpointFailing
  # No answer at all, or one that is no token: what answers may not be Money-Go. Who leads no more asks no more, and does not know.
  expr: |
    count by (cluster) (moneygo_token_endpoint_up{{ include "moneygo-operator.matchers" (list $ "") }} == 0 and moneygo_leader{{ include "moneygo-operator.matchers" (list $ "") }} == 1) > 0
      or count by (cluster) (moneygo_credential_condition_reason{{ include "moneygo-operator.matchers" (list $ `condition="Refreshed",reason="BadResponse"`) }}) > 0
  {{- include "moneygo-operator.alertHead" (list $ "MoneyGoEndpointFailing" .) | trim | nindent 2 }}
  annotations:
    summary: "Money-Go's token endpoint fails"
    description: "Requests to Money-Go's token endpoint get no answer, or none that is a token. Tokens are not refreshed; those that there are last until they expire."
    runbook_url: {{ include "moneygo-operator.runbook" (list $ "MoneyGoEndpointFailing") }}
{{- end }}
{{- end }}
{{- with $alerts.throttled }}
{{- if .enabled }}
- alert: MoneyGoThrottled
  # By Money-Go, or by the operator's own limiter. While the endpoint is down all wait for that.
  expr: |
    count by (cluster) (moneygo_credential_condition_reason{{ include "moneygo-operator.matchers" (list $ `condition="Refreshed",reason="RateLimited"`) }}) > 0
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
{{- with $alerts.noLeader }}
{{- if .enabled }}
- alert: MoneyGoNoLeader
  # Each shard has a leader of its own.
  expr: |
    max by (cluster, namespace, job, money_go_com_shard) (moneygo_leader{{ include "moneygo-operator.matchers" (list $ "") }}) == 0
  {{- include "moneygo-operator.alertHead" (list $ "MoneyGoNoLeader" .) | trim | nindent 2 }}
  annotations:
    summary: "No replica of the Money-Go operator leads"
    description: {{ "Replicas of the operator run in {{ $labels.namespace }}, but none of them has the Lease: no token is refreshed." | quote }}
    runbook_url: {{ include "moneygo-operator.runbook" (list $ "MoneyGoNoLeader") }}
{{- end }}
{{- end }}
{{- with $alerts.absent }}
{{- if .enabled }}
- alert: MoneyGoAbsent
  expr: |
    absent(moneygo_build_info{{ include "moneygo-operator.matchers" (list $ "") }})
  {{- include "moneygo-operator.alertHead" (list $ "MoneyGoAbsent" .) | trim | nindent 2 }}
  annotations:
    summary: "The Money-Go operator is not there"
    description: "Prometheus scrapes no replica of the Money-Go operator: none runs, or none is found. No token may be refreshed, and no other alert of it can fire."
    runbook_url: {{ include "moneygo-operator.runbook" (list $ "MoneyGoAbsent") }}
{{- end }}
{{- end }}
{{- end }}
