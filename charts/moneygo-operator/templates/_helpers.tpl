{{/* The chart's name in labels. */}}
{{- define "moneygo-operator.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* The name of every object: the release's alone where the chart's is in it. 52 characters leave room for suffixes. A release may have a dot in its name, and
     no Service. */}}
{{- define "moneygo-operator.fullname" -}}
{{- $name := .Values.nameOverride | default .Chart.Name }}
{{- $release := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) }}
{{- .Values.fullnameOverride | default $release | replace "." "-" | trunc 52 | trimSuffix "-" }}
{{- end }}

{{/* No Service begins with a digit, up to Kubernetes 1.35. */}}
{{- define "moneygo-operator.serviceName" -}}
{{- $name := include "moneygo-operator.fullname" . }}
{{- printf (regexMatch "^[0-9]" $name | ternary "metrics-%s" "%s-metrics") $name }}
{{- end }}

{{- define "moneygo-operator.namespace" -}}
{{- .Values.namespaceOverride | default .Release.Namespace }}
{{- end }}

{{/* The ROOT as one shard sees it, put into a dict: list ROOT, SHARD, dict. The shard is an empty dict where there are none. Not by way of YAML, which would
     make floats of numbers. */}}
{{- define "moneygo-operator.shard" -}}
{{- $root := index . 0 }}
{{- $shard := index . 1 }}
{{- $values := deepCopy $root.Values }}
{{- range $key, $value := pick $shard "watchNamespaces" "replicaCount" "resources" }}
{{- $_ := set $values $key $value }}
{{- end }}
{{- with $shard.requestsPerSecond }}
{{- $_ := set $values.moneyGo "requestsPerSecond" . }}
{{- end }}
{{- $_ := mergeOverwrite (index . 2) (dict "Values" $values "Chart" $root.Chart "Release" $root.Release "shard" ($shard.name | default "")) }}
{{- end }}

{{/* The name of what each shard has for itself. */}}
{{- define "moneygo-operator.shardName" -}}
{{- list (include "moneygo-operator.fullname" .) (get . "shard") | compact | join "-" }}
{{- end }}

{{- define "moneygo-operator.checkShards" -}}
{{- $of := dict }}
{{- $names := list }}
{{- if and .Values.shards .Values.watchNamespaces }}
{{- fail "watchNamespaces and shards are both set: each shard has watchNamespaces of its own" }}
{{- end }}
{{- range .Values.shards }}
{{- $name := .name }}
{{- if has $name $names }}
{{- fail (printf "two shards are called %s" $name) }}
{{- end }}
{{- if eq $name "own" }}
{{- fail "no shard can be called own: the Role in the operator's namespace is" }}
{{- end }}
{{- if gt (printf "%s-%s" (include "moneygo-operator.fullname" $) $name | len) 63 }}
{{- fail (printf "the shard's name %s is too long: behind %s- it would make more than 63 characters" $name (include "moneygo-operator.fullname" $)) }}
{{- end }}
{{- if gt (printf "%s-%s" (include "moneygo-operator.leaseName" $) $name | len) 253 }}
{{- fail (printf "leaderElection.leaseName is too long: with -%s behind it it would have more than 253 characters" $name) }}
{{- end }}
{{- with and $.Values.serviceAccount.create $.Values.serviceAccount.name }}
{{- if gt (printf "%s-%s" . $name | len) 253 }}
{{- fail (printf "serviceAccount.name is too long: with -%s behind it it would have more than 253 characters" $name) }}
{{- end }}
{{- end }}
{{- $names = append $names $name }}
{{- range .watchNamespaces }}
{{- if hasKey $of . }}
{{- fail (printf "the namespace %s is in two shards, %s and %s: both would ask for its tokens" . (get $of .) $name) }}
{{- end }}
{{- $_ := set $of . $name }}
{{- end }}
{{- end }}
{{- end }}

{{- define "moneygo-operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- list (.Values.serviceAccount.name | default (include "moneygo-operator.fullname" .)) (get . "shard") | compact | join "-" }}
{{- else }}
{{- if and .Values.rbac.create (empty .Values.serviceAccount.name) }}
{{- fail "serviceAccount.create is false and serviceAccount.name empty: the operator's rights would be those of `default`, and so of every Pod of the namespace without an account of its own. Name an account, or set rbac.create to false, too" }}
{{- end }}
{{- .Values.serviceAccount.name | default "default" }}
{{- end }}
{{- end }}

{{/* What finds the Pods. It never changes: a Deployment's selector is immutable. */}}
{{- define "moneygo-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "moneygo-operator.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- with get . "shard" }}
money-go.com/shard: {{ . | quote }}
{{- end }}
{{- end }}

{{/* What the selectors, `kubectl moneygo` and the runbooks go by: no value takes it away. */}}
{{- define "moneygo-operator.finderLabels" -}}
{{ include "moneygo-operator.selectorLabels" . }}
app.kubernetes.io/part-of: moneygo-operator
{{- end }}

{{- define "moneygo-operator.commonLabels" -}}
{{- with mergeOverwrite (dict) ((.Values.global | default dict).commonLabels | default dict) (.Values.commonLabels | default dict) }}
{{- toYaml . }}
{{- end }}
{{- end }}

{{- define "moneygo-operator.labels" -}}
{{- $own := dict
  "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-")
  "app.kubernetes.io/version" (.Chart.AppVersion | toString)
  "app.kubernetes.io/managed-by" .Release.Service }}
{{- $common := include "moneygo-operator.commonLabels" . | fromYaml }}
{{- $finders := include "moneygo-operator.finderLabels" . | fromYaml }}
{{- toYaml (mergeOverwrite $own $common $finders) }}
{{- end }}

{{/* An object's metadata: list ROOT, NAME, more labels, annotations. */}}
{{- define "moneygo-operator.metadata" -}}
{{- $root := index . 0 -}}
name: {{ index . 1 | quote }}
namespace: {{ include "moneygo-operator.namespace" $root | quote }}
labels:
  {{- include "moneygo-operator.labelsWith" (list $root (index . 2)) | nindent 2 }}
{{- with index . 3 }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The labels of every object and some more: list ROOT, labels. Those that find Pods win. */}}
{{- define "moneygo-operator.labelsWith" -}}
{{- $root := index . 0 }}
{{- $labels := include "moneygo-operator.labels" $root | fromYaml }}
{{- $finders := include "moneygo-operator.finderLabels" $root | fromYaml }}
{{- toYaml (mergeOverwrite $labels (index . 1) $finders) }}
{{- end }}

{{- define "moneygo-operator.image" -}}
{{- with .Values.image }}
{{- if .digest }}
{{- printf "%s@%s" .repository .digest }}
{{- else }}
{{- printf "%s:%s" .repository (.tag | default $.Chart.AppVersion) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "moneygo-operator.leaseName" -}}
{{- list (.Values.leaderElection.leaseName | default (include "moneygo-operator.fullname" .)) (get . "shard") | compact | join "-" }}
{{- end }}

{{/* What the operator does with objects and Secrets: the same for a ClusterRole and for the Role of one namespace. */}}
{{- define "moneygo-operator.rules" -}}
# The objects, and what became of them. `get` serves objects that an older schema let in.
- apiGroups: [money-go.com]
  resources: [moneygocredentials]
  verbs: [get, list, watch]
- apiGroups: [money-go.com]
  resources: [moneygocredentials/status]
  verbs: [update]
# Clients and tokens. Watched as metadata only; `get` reads the one that is worked on.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, list, watch, create, update{{ if .Values.rbac.deleteSecrets }}, delete{{ end }}]
# No grant starts in a namespace that is being deleted. In a Role this is the namespace itself and no other.
- apiGroups: [""]
  resources: [namespaces]
  verbs: {{ if .Values.watchNamespaces }}[get]{{ else }}[list, watch]{{ end }}
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}

{{/* What it does in its own namespace, each shard with its own Lease. Nothing where it watches all of them and elects no leader. */}}
{{- define "moneygo-operator.ownRules" -}}
{{- if or .Values.watchNamespaces .Values.shards }}
# The key of the digests.
- apiGroups: [""]
  resources: [secrets]
  verbs: [create]
- apiGroups: [""]
  resources: [secrets]
  resourceNames: [moneygo-operator-digest-key]
  verbs: [get]
{{- end }}
{{- if .Values.leaderElection.enabled }}
# Its own Lease alone; RBAC cannot tell by a name who may create one.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [{{ include "moneygo-operator.leaseName" . | quote }}]
  verbs: [get, update]
{{- end }}
{{- end }}

{{- define "moneygo-operator.subject" -}}
- kind: ServiceAccount
  name: {{ include "moneygo-operator.serviceAccountName" . | quote }}
  namespace: {{ include "moneygo-operator.namespace" . | quote }}
{{- end }}

{{- define "moneygo-operator.subjects" -}}
subjects:
  {{- include "moneygo-operator.subject" . | nindent 2 }}
{{- end }}

{{/* The port of a URL, or nothing. */}}
{{- define "moneygo-operator.portOf" -}}
{{- with regexFind ":[0-9]+$" (urlParse .).host }}
{{- trimPrefix ":" . }}
{{- end }}
{{- end }}

{{/* What the HTTP server's scraper is told, by a ServiceMonitor or a PodMonitor. */}}
{{- define "moneygo-operator.scrape" -}}
port: http
path: /metrics
honorLabels: {{ .honorLabels }}
{{- with .interval }}
interval: {{ . }}
{{- end }}
{{- with .scrapeTimeout }}
scrapeTimeout: {{ . }}
{{- end }}
{{- with .relabelings }}
relabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .metricRelabelings }}
metricRelabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
